"""Pooling over NHWC feature maps, with gradients that XLA:CPU runs fast."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.layers.convolution import Padding, convolve, explicit_padding, pair
from transfer_jax.layers.lowering import Geometry, window


def max_pool(x: jax.Array, size: int | Sequence[int] = 2, strides: int | Sequence[int] | None = None,
             padding: Padding = "VALID") -> jax.Array:
    """Largest value of each window, [B, H, W, C] -> [B, H', W', C]; `strides` defaults to the window's `size`.

    Where values tie, the gradient goes to the first of them in row order, as in PyTorch. Padding never wins.
    """
    size = pair(size)
    strides = size if strides is None else pair(strides)
    pads = explicit_padding(padding, x.shape[1:3], size, strides)
    return _max_pool(Geometry(x.shape[1:3], size, strides, pads), x)


def avg_pool(x: jax.Array, size: int | Sequence[int] = 2, strides: int | Sequence[int] | None = None,
             padding: Padding = "VALID") -> jax.Array:
    """Mean of each window (padding counts as zeros), [B, H, W, C] -> [B, H', W', C]."""
    size = pair(size)
    strides = size if strides is None else pair(strides)
    pads = explicit_padding(padding, x.shape[1:3], size, strides)
    if jax.default_backend() != "cpu":
        return nn.avg_pool(x, size, strides, pads)
    return convolve(x, jnp.ones((*size, 1, x.shape[3]), x.dtype), strides, pads, x.shape[3]) / math.prod(size)


def global_average(x: jax.Array) -> jax.Array:
    """Mean over the map, [B, H, W, C] -> [B, C], in the dtype of `x` (summed in float32 at least)."""
    return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(geometry: Geometry, x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, _windows(geometry, x))


def _forward(geometry: Geometry, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima, and for each the number of the tap that won it: a small integer instead of the whole input."""
    best, *others = _windows(geometry, x)
    winner = jnp.zeros(best.shape, jnp.int8 if len(others) < 127 else jnp.int32)
    for number, value in enumerate(others, 1):
        # Written with `not <=` so that a NaN wins and stays visible, as it does in the maximum.
        larger = ~(value <= best) & ~jnp.isnan(best)
        best, winner = jnp.where(larger, value, best), jnp.where(larger, number, winner).astype(winner.dtype)
    return best, winner


def _backward(geometry: Geometry, winner: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    """Sends each gradient to the place of its winner; overlapping windows add up.

    Rows and columns of the image are taken by their remainder modulo the stride: within one remainder every place
    sees its windows at fixed offsets, so the sum needs slices only.
    """
    (kh, kw), (sh, sw) = geometry.kernel, geometry.strides
    (top, _), (left, _) = geometry.padding
    blocks = [-(-(n + low) // s) for n, s, low in zip(geometry.size, (sh, sw), (top, left), strict=True)]
    reach = [(k - 1) // s for k, s in zip((kh, kw), (sh, sw), strict=True)]
    edges = [(0, 0, 0), *((r, n - o, 0) for r, n, o in zip(reach, blocks, geometry.output, strict=True)), (0, 0, 0)]
    winner = jax.lax.pad(winner, jnp.array(-1, winner.dtype), edges)
    g = jax.lax.pad(g, jnp.zeros((), g.dtype), edges)

    def phase(row: int, column: int) -> jax.Array:
        total = jnp.zeros((g.shape[0], *blocks, g.shape[3]), jnp.promote_types(g.dtype, jnp.float32))
        for i, j in itertools.product(range(row, kh, sh), range(column, kw, sw)):
            y, x = reach[0] - i // sh, reach[1] - j // sw
            seen = (slice(None), slice(y, y + blocks[0]), slice(x, x + blocks[1]))
            total += jnp.where(winner[seen] == i * kw + j, g[seen], 0)
        return total.astype(g.dtype)

    phases = jnp.stack([jnp.stack([phase(r, c) for c in range(sw)], 3) for r in range(sh)], 2)
    whole = phases.reshape(g.shape[0], blocks[0] * sh, blocks[1] * sw, g.shape[3])
    return (whole[:, top:top + geometry.size[0], left:left + geometry.size[1]],)


_max_pool.defvjp(_forward, _backward)


def _windows(geometry: Geometry, x: jax.Array) -> list[jax.Array]:
    """What each tap of the window sees, padded with minus infinity: a list of [B, H', W', C]."""
    if any(low or high for low, high in geometry.padding):
        x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)), constant_values=-jnp.inf)
    return [window(x, i, j, geometry.output, geometry.strides)
            for i, j in itertools.product(*map(range, geometry.kernel))]


def ceil_max_pool(x: jax.Array, size: int, strides: int, padding: int = 0) -> jax.Array:
    """`max_pool` whose last window may hang over the edge, as PyTorch's `ceil_mode=True` has it.

    A window that would begin behind the image and its `padding` (at both sides) is left out.
    """
    edges = tuple((padding, _overhang(n, size, strides, padding)) for n in x.shape[1:3])
    return max_pool(x, size, strides, edges)


def _overhang(length: int, size: int, strides: int, padding: int) -> int:
    """Padding behind an axis so that the last window of the ceiling mode fits."""
    windows = -(-(length + 2 * padding - size) // strides) + 1
    if (windows - 1) * strides >= length + padding:
        windows -= 1
    return max((windows - 1) * strides + size - length - padding, 0)


def adaptive_avg_pool(x: jax.Array, size: int | Sequence[int]) -> jax.Array:
    """Means over a grid of `size` regions, [B, H, W, C] -> [B, *size, C], as PyTorch's `adaptive_avg_pool2d`.

    Region i of n along an axis of length L reaches from floor(i L / n) to ceil((i + 1) L / n): regions overlap where n
    does not divide L, and repeat pixels where n > L. Summed in float32.
    """
    size = pair(size)
    if x.shape[1:3] == size:
        return x
    rows, columns = (_region_weights(length, n) for length, n in zip(x.shape[1:3], size, strict=True))
    y = jnp.einsum("ih,bhwc->biwc", rows, x.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    y = jnp.einsum("jw,biwc->bijc", columns, y, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def _region_weights(length: int, regions: int) -> np.ndarray:
    """Row i takes the mean over region i: float32 [regions, length]."""
    weights = np.zeros((regions, length), np.float32)
    for i in range(regions):
        first, end = i * length // regions, -(-(i + 1) * length // regions)
        weights[i, first:end] = 1 / (end - first)
    return weights
