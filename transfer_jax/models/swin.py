"""Swin transformers (Liu et al. 2021)."""

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
from transfer_jax.layers.window_attention import WindowAttention
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.taps import Backbone, Taps, walk
from transfer_jax.models.transformer import MLP

SIZES = {"tiny": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
         "small": {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
         "base": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}}
PATCH = 4
EPSILON = 1e-5
initial = nn.initializers.truncated_normal(0.02)


def layer_norm(name: str, dtype: Any) -> LayerNorm:
    """LayerNorm over channels; variance in two passes, so that a large mean does not destroy it."""
    return LayerNorm(epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)


class SwinBlock(nn.Module):
    """Attention in windows and a perceptron, each on the normalised input and added to it: [B, H, W, D] -> the same.

    drop_path: rate at which an example skips a branch. dropout: of attention weights and inside of the perceptron.
    """

    heads: int
    window: int
    shifted: bool
    dropout: float
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = WindowAttention(self.heads, self.window, self.shifted, self.dropout, self.dtype, initial,
                            name="attention")(layer_norm("norm1", self.dtype)(x), train)
        x = self._add(x, y, train)
        y = MLP(4 * x.shape[-1], dropout=self.dropout, dtype=self.dtype, kernel_init=initial,
                name="mlp")(layer_norm("norm2", self.dtype)(x), train)
        return self._add(x, y, train)

    def _add(self, x: jax.Array, y: jax.Array, train: bool) -> jax.Array:
        return materialized(x + DropPath(self.drop_path)(y, train))


class PatchMerging(nn.Module):
    """The four places of each 2x2 square side by side, LayerNorm, a dense layer: [B, H, W, D] -> [B, H/2, W/2, 2 D].

    Odd maps are filled with zeros below and on the right. The order is top left, bottom left, top right, bottom right.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, features = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, features).transpose(0, 1, 3, 4, 2, 5)
        x = layer_norm("norm", self.dtype)(x.reshape(batch, height // 2, width // 2, 4 * features))
        return Dense(2 * features, use_bias=False, dtype=self.dtype, kernel_init=initial, name="reduction")(x)


class SwinStage(nn.Module):
    """Merges patches (if `merge`), then blocks `block0` ...; every second one has shifted windows."""

    heads: int
    window: int
    merge: bool
    dropout: float
    drop_paths: tuple[float, ...]
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.merge:
            x = PatchMerging(self.dtype, name="merge")(x)
        block = rematerialized(SwinBlock, self.remat)
        for i, rate in enumerate(self.drop_paths):
            x = block(self.heads, self.window, i % 2 == 1, self.dropout, rate, self.dtype, name=f"block{i}")(x, train)
        return x


class Swin(Backbone):
    """Swin, by default Swin-T: images [B, H, W, C] of any size from 4 x 4 pixels on.

    Taps: `stem` and `stage1` (1/4 of the image), `stage2` (1/8), `stage3` (1/16), `stage4` (1/32, rounded up), `norm`
    (the last map behind its LayerNorm), `pooled` [B, D], its mean. Rows and columns that do not fill a patch of 4 x 4
    are left out.

    window: side of the windows in places. width, depths, heads: channels of the first stage, blocks and heads of each.
    dropout: of attention weights and inside of the perceptrons. drop_path: rate of stochastic depth at the last block,
        growing linearly from 0 at the first.
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    dropout: float = 0.0
    drop_path: float = 0.0

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.depths))), "norm", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        self._require(x)
        rates = np.split(np.linspace(0.0, self.drop_path, sum(self.depths)), np.cumsum(self.depths)[:-1])

        def stem(x: jax.Array) -> jax.Array:
            x = Conv(self.width, PATCH, PATCH, "VALID", dtype=self.dtype, name="patches")(x)
            return layer_norm("patches_norm", self.dtype)(x)

        def stage(i: int, x: jax.Array) -> jax.Array:
            return SwinStage(self.heads[i], self.window, i > 0, self.dropout, tuple(map(float, rates[i])), self.remat,
                             self.dtype, name=f"stage{i + 1}")(x, train)

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, **{f"stage{i + 1}": functools.partial(stage, i) for i in range(len(self.depths))},
            "norm": lambda x: layer_norm("norm", self.dtype)(x), "pooled": global_average})

    def _require(self, x: jax.Array) -> None:
        if min(x.shape[1:3]) < PATCH:
            raise UserError(f"an image of {x.shape[1]} x {x.shape[2]} is too small for a Swin transformer; give at "
                            f"least {PATCH} x {PATCH}")
        if len(self.heads) != len(self.depths):
            raise UserError(f"depths {self.depths} and heads {self.heads} of a Swin transformer speak of different "
                            f"numbers of stages; give one number of each per stage")
        if self.window < 1:
            raise UserError(f"window={self.window} of a Swin transformer holds nothing; give at least 1")
