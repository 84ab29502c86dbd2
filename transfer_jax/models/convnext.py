"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s")."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.dense import Dense
from transfer_jax.layers.materialization import materialized
from transfer_jax.layers.normalization import LayerNorm
from transfer_jax.layers.pooling import global_average
from transfer_jax.layers.stochastic_depth import DropPath
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.image_size import require_size
from transfer_jax.models.taps import Backbone, Taps, walk

SIZES = {"tiny": ((3, 3, 9, 3), 96), "small": ((3, 3, 27, 3), 96), "base": ((3, 3, 27, 3), 128),
         "large": ((3, 3, 27, 3), 192)}  # blocks of each stage, channels of the first
PATCH = 4
EPSILON = 1e-6
initial = nn.initializers.truncated_normal(0.02)


def layer_norm(name: str, dtype: Any, epsilon: float = EPSILON) -> LayerNorm:
    """LayerNorm over channels; variance in two passes, so that a large mean does not destroy it."""
    return LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, two dense layers with GELU, layer scale, shortcut: [B, H, W, C] -> the same shape.

    layer_scale: first value of the factors per channel; drop_path: rate at which an example skips the block.
    """

    layer_scale: float
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        y = Conv(channels, 7, padding=3, feature_group_count=channels, dtype=self.dtype, kernel_init=initial,
                 name="dwconv")(x)
        y = layer_norm("norm", self.dtype)(y)
        y = Dense(4 * channels, dtype=self.dtype, kernel_init=initial, name="pwconv1")(y)
        y = nn.gelu(y, approximate=False)
        y = Dense(channels, dtype=self.dtype, kernel_init=initial, name="pwconv2")(y)
        factors = self.param("layer_scale", nn.initializers.constant(self.layer_scale), (channels,), jnp.float32)
        return materialized(x + DropPath(self.drop_path)(y * factors.astype(y.dtype), train))


class ConvNeXtStage(nn.Module):
    """LayerNorm and a 2x2 convolution that halves the map (if `downsample`), then blocks `block0` ..."""

    features: int
    downsample: bool
    drop_paths: tuple[float, ...]
    layer_scale: float
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.downsample:
            x = layer_norm("downsample_norm", self.dtype)(x)
            x = Conv(self.features, 2, 2, "VALID", dtype=self.dtype, kernel_init=initial, name="downsample_conv")(x)
        block = rematerialized(ConvNeXtBlock, self.remat)
        for i, rate in enumerate(self.drop_paths):
            x = block(self.layer_scale, rate, self.dtype, name=f"block{i}")(x, train)
        return x


class ConvNeXt(Backbone):
    """ConvNeXt of a published `size`: tiny, small, base or large.

    Taps: `stem` and `stage1` (1/4 of the image), `stage2` (1/8), `stage3` (1/16), `stage4` (1/32), `pooled` [B, D]: the
    mean of the last map behind its LayerNorm. Rows and columns that do not fill a patch are left out.
    drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
    final_epsilon: of the last LayerNorm; transformers has 1e-12 there.
    """

    size: str = "tiny"
    drop_path: float = 0.0
    layer_scale: float = 1e-6
    final_epsilon: float = EPSILON

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.size not in SIZES:
            raise UserError(f"size={self.size!r} of a ConvNeXt is unknown; use {', '.join(SIZES)}")
        blocks, width = SIZES[self.size]
        require_size(x, {"stem": PATCH, "stage1": PATCH, "stage2": 8, "stage3": 16, "stage4": 32}, self.tap_names,
                     self.until, "ConvNeXt")
        rates = np.split(np.linspace(0.0, self.drop_path, sum(blocks)), np.cumsum(blocks)[:-1])

        def stem(x: jax.Array) -> jax.Array:
            x = Conv(width, PATCH, PATCH, "VALID", dtype=self.dtype, kernel_init=initial, name="stem_conv")(x)
            return layer_norm("stem_norm", self.dtype)(x)

        def stage(i: int, x: jax.Array) -> jax.Array:
            return ConvNeXtStage(width * 2**i, i > 0, tuple(map(float, rates[i])), self.layer_scale, self.remat,
                                 self.dtype, name=f"stage{i + 1}")(x, train)

        def pooled(x: jax.Array) -> jax.Array:
            return layer_norm("norm", self.dtype, self.final_epsilon)(global_average(x))

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, **{f"stage{i + 1}": functools.partial(stage, i) for i in range(4)}, "pooled": pooled})
