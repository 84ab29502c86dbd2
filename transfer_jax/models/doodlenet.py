"""DoodleNet (Zhao 2019, part of ml5.js): a small network for 345 classes of drawings from Quick, Draw!."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.pooling import adaptive_avg_pool, max_pool
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.image_size import require_size
from transfer_jax.models.taps import Backbone, Taps, walk

WIDTHS = (16, 32, 64)
HIDDEN = 512
LEAST = {f"stage{i}": 2**i for i in (1, 2, 3)}


class DoodleStage(nn.Module):
    """[B, H, W, C] -> [B, H / 2, W / 2, width]: two 3x3 convolutions with ReLU, then max-pooling."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        del train
        for i in (1, 2):
            x = nn.relu(Conv(self.width, 3, dtype=self.dtype, name=f"conv{i}")(x))
        return max_pool(x, 2)


class DoodleNet(Backbone):
    """DoodleNet; grey drawings of 28 x 28 pixels, white (1) on black (0).

    Taps: `stage1` (1/2 of the image), `stage2` (1/4), `stage3` (1/8), each after its max-pooling, and `pooled`
    [B, 512], the dense layer with tanh. Of maps of another size than `pool_size` it sees an adaptive mean.
    dropout: rate in front of the dense layer, needs the rng 'dropout' in training.
    """

    dropout: float = 0.1
    pool_size: int = 3

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stage1", "stage2", "stage3", "pooled")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C], H and W at least 8 -> taps."""
        require_size(x, LEAST, self.tap_names, self.until, "DoodleNet")
        block = rematerialized(DoodleStage, self.remat)

        def stage(i: int, x: jax.Array) -> jax.Array:
            return block(WIDTHS[i - 1], self.dtype, name=f"stage{i}")(x, train)

        def pooled(x: jax.Array) -> jax.Array:
            x = nn.Dropout(self.dropout, deterministic=not train)(adaptive_avg_pool(x, self.pool_size))
            return jnp.tanh(nn.Dense(HIDDEN, dtype=self.dtype, name="dense")(x.reshape(x.shape[0], -1)))

        steps = {f"stage{i}": functools.partial(stage, i) for i in (1, 2, 3)}
        return walk(x.astype(self.dtype), self.until, {**steps, "pooled": pooled})
