"""How a depthwise convolution (one kernel per channel) and its two gradients are computed on a CPU.

XLA:CPU runs grouped convolutions on a naive path, and reduces a map to one number per channel one channel after the
other. All three functions are therefore written as sums of shifted products, which it turns into vector instructions.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from transfer_jax.layers.lowering import Geometry, Pair, differentiable, each_member, window
from transfer_jax.layers.materialization import apart

ROWS = 14  # rows that one step of the kernel gradient adds up
STRIP_BYTES = 80_000  # size of one partial sum of the kernel gradient; those of all taps should stay in the cache


def depthwise(x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair]) -> jax.Array:
    """[B, H, W, C] * [h, w, 1, C m] -> [B, H', W', C m]: channel c feeds the results c m to (c + 1) m - 1.

    Any dtype (sums in float32 at least); reverse-mode derivatives of any order.
    """
    x = jnp.repeat(x, kernel.shape[3] // x.shape[3], axis=3)
    # Padded outside of the functions: the padded image is what all of them read, and the only copy that is kept.
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return _bilinear(Geometry(x.shape[1:3], kernel.shape[:2], strides, ((0, 0), (0, 0))))(x, kernel)


@functools.cache
def _bilinear(geometry: Geometry) -> Callable[[jax.Array, jax.Array], jax.Array]:
    forward = differentiable(each_member(functools.partial(_forward, geometry), True),
                             lambda c, x, k: (to_image(c, k), to_kernel(x, c)))
    to_image = differentiable(each_member(functools.partial(_to_image, geometry), True),
                              lambda c, g, k: (forward(c, k), to_kernel(c, g)))
    to_kernel = differentiable(each_member(functools.partial(_to_kernel, geometry), False),
                               lambda c, x, g: (to_image(g, c), forward(x, c)))
    return forward


def _taps(geometry: Geometry) -> list[Pair]:
    return list(itertools.product(*map(range, geometry.kernel)))


def _wide(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays in float32 at least."""
    return [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in arrays]


def _forward(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    wide, weights = _wide(x, kernel)
    y = sum(window(wide, i, j, geometry.output, geometry.strides) * weights[i, j, 0] for i, j in _taps(geometry))
    return y.astype(x.dtype)


def _to_image(geometry: Geometry, g: jax.Array, kernel: jax.Array) -> jax.Array:
    """Rows and columns of the image by their remainder modulo the stride: each is a depthwise convolution of `g`."""
    (kh, kw), (sh, sw) = geometry.kernel, geometry.strides
    blocks = [-(-n // s) for n, s in zip(geometry.size, geometry.strides, strict=True)]
    reach = [(k - 1) // s for k, s in zip(geometry.kernel, geometry.strides, strict=True)]
    edges = [(0, 0, 0), *((r, n - o, 0) for r, n, o in zip(reach, blocks, geometry.output, strict=True)), (0, 0, 0)]
    padded, weights = _wide(lax.pad(g, jnp.zeros((), g.dtype), edges), kernel)

    def phase(row: int, column: int) -> jax.Array:
        total = jnp.zeros((g.shape[0], *blocks, g.shape[3]), padded.dtype)
        for i, j in itertools.product(range(row, kh, sh), range(column, kw, sw)):
            y, x = reach[0] - i // sh, reach[1] - j // sw
            total += padded[:, y:y + blocks[0], x:x + blocks[1]] * weights[i, j, 0]
        return total.astype(g.dtype)

    phases = jnp.stack([jnp.stack([phase(r, c) for c in range(sw)], 3) for r in range(sh)], 2)
    whole = phases.reshape(g.shape[0], blocks[0] * sh, blocks[1] * sw, g.shape[3])
    return whole[:, :geometry.size[0], :geometry.size[1]]


def _to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """Strip by strip of some examples' rows: adds the rows of each tap's products up, and the columns at the end.

    XLA:CPU would merge the cut of a strip at a variable place into what reads it and then use no vector instructions.
    """
    batch, height, width, channels = g.shape
    if g.size == 0:
        return jnp.zeros((*geometry.kernel, 1, channels), x.dtype)
    rows = _divisor(height, ROWS)
    examples = _divisor(batch, STRIP_BYTES // (4 * width * channels))
    per_image = height // rows
    tall = (rows - 1) * geometry.strides[0] + geometry.kernel[0]

    def strip(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        example, row = number // per_image * examples, number % per_image * rows
        images = lax.dynamic_slice(x, (example, row * geometry.strides[0], 0, 0),
                                   (examples, tall, x.shape[2], channels))
        return images, lax.dynamic_slice(g, (example, row, 0, 0), (examples, rows, width, channels))

    def add(number: jax.Array, totals: list[jax.Array]) -> list[jax.Array]:
        images, gradients = _wide(*apart(strip, number))
        new = []
        for (i, j), total in zip(_taps(geometry), totals, strict=True):
            seen = window(images, i, j, (rows, width), geometry.strides)
            new.append(total + sum(seen[:, row] * gradients[:, row] for row in range(rows)))
        return new

    nothing = jnp.zeros((examples, width, channels), jnp.promote_types(x.dtype, jnp.float32))
    totals = lax.fori_loop(0, batch // examples * per_image, add, [nothing] * len(_taps(geometry)))
    sums = jnp.stack([total.sum((0, 1)) for total in totals])
    return sums.reshape(*geometry.kernel, 1, channels).astype(x.dtype)


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most` (at least 1)."""
    return max(d for d in range(1, max(1, min(number, most)) + 1) if number % d == 0)
