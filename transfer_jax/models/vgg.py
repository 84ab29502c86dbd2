"""VGG (Simonyan & Zisserman 2015, "Very deep convolutional networks"), also with BatchNorm."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import adaptive_avg_pool, max_pool
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.image_size import require_size
from transfer_jax.models.taps import Backbone, Taps, walk

# Convolutions of each stage: configurations A, B, D and E of table 1.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
HIDDEN = 4096
LEAST = {f"stage{i}": 2**i for i in range(1, 6)}
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class VGGStage(nn.Module):
    """[B, H, W, C] -> [B, H / 2, W / 2, width]: 3x3 convolutions with ReLU (and BatchNorm), then max-pooling."""

    convolutions: int
    width: int
    batch_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.convolutions + 1):
            x = Conv(self.width, 3, 1, 1, dtype=self.dtype, kernel_init=he_normal, name=f"conv{i}")(x)
            if self.batch_norm:
                x = BatchNorm(unbiased=True, dtype=self.dtype, name=f"bn{i}")(x, train)
            x = nn.relu(x)
        return max_pool(x, 2)


class VGG(Backbone):
    """VGG of 11, 13, 16 or 19 layers.

    Taps: `stage1` (1/2 of the image) ... `stage5` (1/32), each after its max-pooling; `fc6` and `fc7` [B, 4096] before
    dropout; `pooled`, which is `fc7` with dropout. Of maps of another size than `pool_size`, fc6 sees an adaptive mean.
    dropout: rate behind fc6 and fc7, needs the rng 'dropout' in training.
    """

    depth: int = 16
    batch_norm: bool = False
    dropout: float = 0.5
    pool_size: int = 7

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stage1", "stage2", "stage3", "stage4", "stage5", "fc6", "fc7", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.depth not in DEPTHS:
            raise UserError(f"depth={self.depth} of a VGG is unknown; use {', '.join(map(str, DEPTHS))}")
        require_size(x, LEAST, self.tap_names, self.until, f"VGG-{self.depth}")

        def stage(i: int):
            return lambda x: rematerialized(VGGStage, self.remat)(
                DEPTHS[self.depth][i], WIDTHS[i], self.batch_norm, self.dtype, name=f"stage{i + 1}")(x, train)

        def thinned(x: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        def dense(x: jax.Array, name: str) -> jax.Array:
            return nn.relu(nn.Dense(HIDDEN, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), name=name)(x))

        def flat(x: jax.Array) -> jax.Array:
            return adaptive_avg_pool(x, self.pool_size).reshape(x.shape[0], -1)

        return walk(x.astype(self.dtype), self.until, {
            **{f"stage{i + 1}": stage(i) for i in range(5)}, "fc6": lambda x: dense(flat(x), "fc6"),
            "fc7": lambda x: dense(thinned(x), "fc7"), "pooled": thinned})
