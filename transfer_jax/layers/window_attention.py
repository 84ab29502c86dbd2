"""Attention inside of windows of a map, with biases by relative position (Liu et al. 2021, sections 3.2 and 3.3)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.attention import Attending
from transfer_jax.layers.dense import Dense

Pair = tuple[int, int]


def relative_position_index(window: int) -> np.ndarray:
    """For each query and key of a window the row in the flat table of (2 window - 1)^2 relative positions.

    int64 [window^2, window^2]; for a key dy above and dx left of the query the row is
    (dy + window - 1) (2 window - 1) + dx + window - 1.
    """
    rows, columns = (axis.ravel() for axis in np.indices((window, window)))
    down, right = (axis[:, None] - axis[None] + window - 1 for axis in (rows, columns))
    return down * (2 * window - 1) + right


@functools.cache
def shifted_mask(size: Pair, window: int, shift: Pair) -> np.ndarray:
    """Who may attend to whom after a cyclic shift: only what was together in the image before.

    Args:
        size: of the map, a multiple of `window`.
        shift: rows and columns that came from the other end; they are the last ones.

    Returns:
        bool [windows, window^2, window^2].
    """
    regions = [np.repeat([0, 1], [length - moved, moved]) for length, moved in zip(size, shift, strict=True)]
    region = regions[0][:, None] * 2 + regions[1]
    region = region.reshape(size[0] // window, window, size[1] // window, window)
    region = region.swapaxes(1, 2).reshape(-1, window * window)
    return region[:, :, None] == region[:, None]


class WindowAttention(Attending):
    """Multi-head attention inside of each window of `window` x `window` places: [B, H, W, D] -> the same shape.

    A map that is no multiple of the window is filled with zeros below and on the right, which take part. With
    `shifted` the windows are moved by half a window, around the edges, where no place attends across the edge;
    along an axis with one window only there is nothing to move. So do the authors and torchvision; timm moves before
    it fills, and takes smaller windows on small maps, which is the same for maps that are multiples of the window.

    Parameters: dense layers `query`, `key`, `value`, `out`, and `relative_positions`
    [2 window - 1, 2 window - 1, heads], added to the products by vertical and horizontal distance of query from key.
    dropout: rate at which attention weights are zeroed in training.
    """

    heads: int
    window: int = 7
    shifted: bool = False
    dropout: float = 0.0
    dtype: Any = None
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        height, width, features = x.shape[1:]
        if features % self.heads:
            raise UserError(f"{self.heads} attention heads do not divide the width {features}; choose a divisor of it")
        x = jnp.pad(x, ((0, 0), (0, -height % self.window), (0, -width % self.window), (0, 0)))
        size = x.shape[1:3]
        shift = tuple(self.window // 2 if self.shifted and length > self.window else 0 for length in size)
        x = self._attend(self._split(jnp.roll(x, (-shift[0], -shift[1]), (1, 2))), size, shift, train)
        x = jnp.roll(self._join(x, size), shift, (1, 2))[:, :height, :width]
        return self._dense(features, "out")(x)

    def _attend(self, x: jax.Array, size: Pair, shift: Pair, train: bool) -> jax.Array:
        """Windows [B, N, window^2, D] -> the mixed values, of the same shape."""
        batch, count, places, features = x.shape

        def heads(name: str) -> jax.Array:
            return self._dense(features, name)(x).reshape(batch * count, places, self.heads, features // self.heads)

        side = 2 * self.window - 1
        table = self.param("relative_positions", nn.initializers.truncated_normal(0.02), (side, side, self.heads))
        bias = table.reshape(-1, self.heads)[relative_position_index(self.window)].transpose(2, 0, 1)
        mask = None
        if any(shift):
            mask = jnp.tile(shifted_mask(size, self.window, shift)[:, None], (batch, 1, 1, 1))
        drop = nn.Dropout(self.dropout, deterministic=False) if train and self.dropout else None
        return self.mix(heads("query"), heads("key"), heads("value"), mask, bias[None], False, drop).reshape(x.shape)

    def _dense(self, features: int, name: str) -> Dense:
        return Dense(features, dtype=self.dtype, kernel_init=self.kernel_init, name=name)

    def _split(self, x: jax.Array) -> jax.Array:
        """[B, H, W, D] -> windows [B, N, window^2, D], row by row."""
        batch, height, width, features = x.shape
        x = x.reshape(batch, height // self.window, self.window, width // self.window, self.window, features)
        return x.swapaxes(2, 3).reshape(batch, -1, self.window * self.window, features)

    def _join(self, x: jax.Array, size: Pair) -> jax.Array:
        """The inverse of `_split` for a map of `size`."""
        x = x.reshape(x.shape[0], size[0] // self.window, size[1] // self.window, self.window, self.window, -1)
        return x.swapaxes(2, 3).reshape(x.shape[0], *size, -1)
