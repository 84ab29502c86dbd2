"""Tiny Darknet (Redmon 2016, https://pjreddie.com/darknet/tiny-darknet): an ImageNet classifier of 1.0 M parameters."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import global_average, max_pool
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.taps import Backbone, Taps, walk

SLOPE = 0.1  # of the leaky ReLU
# Convolutions of each stage as (width, kernel size); 2x2 max-pooling stands between the stages.
STAGES = (((16, 3),), ((32, 3),), ((16, 1), (128, 3), (16, 1), (128, 3)), ((32, 1), (256, 3), (32, 1), (256, 3)),
          ((64, 1), (512, 3), (64, 1), (512, 3), (128, 1)))


class DarknetStage(nn.Module):
    """[B, H, W, C] -> [B, H, W, C']: convolutions `conv1` ... with BatchNorm `bn1` ... and leaky ReLU."""

    convolutions: Sequence[tuple[int, int]]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, (width, size) in enumerate(self.convolutions, 1):
            x = Conv(width, size, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal(),
                     name=f"conv{i}")(x)
            x = nn.leaky_relu(BatchNorm(0.99, 1e-3, self.dtype, name=f"bn{i}")(x, train), SLOPE)
        return x


class TinyDarknet(Backbone):
    """Tiny Darknet of 16 layers; images of values in 0..1.

    Taps: `stage1` (image size), `stage2` (1/2), `stage3` (1/4), `stage4` (1/8), `stage5` (1/16), `pooled` [B, 128].
    Max-pooling belongs to the stage behind it, and rounds odd sizes up. The last layer of the original, a 1x1
    convolution to the classes whose mean over the map is the answer, is the same as a linear head on `pooled`.
    """

    @property
    def tap_names(self) -> tuple[str, ...]:
        return (*(f"stage{i}" for i in range(1, 6)), "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        block = rematerialized(DarknetStage, self.remat)

        def stage(i: int, x: jax.Array) -> jax.Array:
            x = x if i == 1 else max_pool(x, 2, padding="SAME")
            return block(STAGES[i - 1], self.dtype, name=f"stage{i}")(x, train)

        steps = {f"stage{i}": functools.partial(stage, i) for i in range(1, 6)}
        return walk(x.astype(self.dtype), self.until, {**steps, "pooled": global_average})
