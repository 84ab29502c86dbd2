"""CREPE (Kim, Salamon, Li & Bello 2018, "CREPE: A convolutional representation for pitch estimation")."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import max_pool
from transfer_jax.layers.time_convolution import TimeConv
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.taps import Backbone, Resumed, Taps, walk

CAPACITIES = {"tiny": 4, "small": 8, "medium": 16, "large": 24, "full": 32}
WIDTHS = (32, 4, 4, 4, 8, 16)  # of each block, times the capacity
LENGTHS = (512, 64, 64, 64, 64, 64)  # of the kernels
STRIDES = (4, 1, 1, 1, 1, 1)
FRAME = 1024  # samples at 16 kHz: 64 ms


class CrepeBlock(nn.Module):
    """[B, T, C] -> [B, T / strides / 2, width]: convolution, ReLU, BatchNorm, max-pooling, dropout."""

    width: int
    length: int
    strides: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(TimeConv(self.width, self.length, self.strides, self.dtype, name="conv")(x))
        x = BatchNorm(0.99, 1e-3, self.dtype, name="bn")(x, train)
        x = max_pool(x[:, :, None], (2, 1))[:, :, 0]
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class Crepe(Backbone):
    """CREPE of the capacity `size`: 'tiny', 'small', 'medium', 'large' or 'full'.

    Sees mono audio at 16 kHz, published for frames of 1024 samples, each brought to mean 0 and standard deviation 1.
    Taps: `block1` [B, T / 8, C], `block2` (1/16) ... `block6` (1/256), and `pooled`, the mean of the last over time.
    The published classifier sits on the flattened `block6`: 360 bins of 20 cents from 31.7 Hz on, each with a sigmoid.
    dropout: rate behind each block, needs the rng 'dropout' in training.
    """

    size: str = "full"
    dropout: float = 0.25

    @property
    def tap_names(self) -> tuple[str, ...]:
        return (*(f"block{i}" for i in range(1, 7)), "pooled")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, FRAME), jnp.float32)

    @property
    def classifier(self) -> Component:
        return Component(kind="linear", tap="block6")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, T] or [B, T, 1] -> taps."""
        if self.size not in CAPACITIES:
            raise unknown("size", self.size, CAPACITIES, "CREPE")
        if not isinstance(x, Resumed):
            self._require(x)
            x = x.reshape(*x.shape[:2], 1)
        block = rematerialized(CrepeBlock, self.remat)

        def run(i: int, x: jax.Array) -> jax.Array:
            width = WIDTHS[i - 1] * CAPACITIES[self.size]
            return block(width, LENGTHS[i - 1], STRIDES[i - 1], self.dropout, self.dtype, name=f"block{i}")(x, train)

        steps = {f"block{i}": functools.partial(run, i) for i in range(1, 7)}
        return walk(x.astype(self.dtype), self.until, {**steps, "pooled": _mean_over_time})

    def _require(self, x: jax.Array) -> None:
        if x.ndim not in (2, 3) or x.shape[2:] not in ((), (1,)):
            raise UserError(f"CREPE takes mono audio [B, T] or [B, T, 1], not an array of the shape {list(x.shape)}")
        self._require_length(x.shape[1])

    def _require_length(self, samples: int) -> None:
        blocks = 6 if self.until in (None, "pooled") else self.tap_names.index(self.until) + 1
        least = STRIDES[0] * (2**blocks - 1) + 1  # strides round up, poolings down
        if samples < least:
            part = f" up to {self.until!r}" if self.until is not None else ""
            raise UserError(f"audio of {samples} samples is too short for CREPE{part}; use at least {least}")


def _mean_over_time(x: jax.Array) -> jax.Array:
    return x.mean(1, dtype=jnp.float32).astype(x.dtype)
