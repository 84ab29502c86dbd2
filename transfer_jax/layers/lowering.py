"""How an ordinary convolution and its two gradients are computed on a CPU. Elsewhere XLA's own is used.

XLA:CPU is fast for convolutions in one canonical form only. Inside a loop it leaves gradients in another form (20
times slower), and `vmap` over parameters makes grouped convolutions (10 to 30 times slower). So the convolution, its
gradient to the image and its gradient to the kernel are three functions here, each with the forms that measured
fastest (`benchmarks/layers.py`), and a batch of members runs one member after the other. A convolution is bilinear:
the derivatives of each of the three are the other two, so any order of reverse-mode derivative works.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from transfer_jax.layers.dense import product
from transfer_jax.layers.materialization import shared

Pair = tuple[int, int]
LAYOUT = ("NHWC", "HWIO", "NHWC")
UNROLLED_MEMBERS = 8  # more members than this run in a loop: a little slower, but compiled once
CONTRACTION = 4096  # positions that one kernel-gradient convolution sums over before its blocks leave the cache
PIECES = 8
UNPADDED = ((0, 0), (0, 0))
FEW_CHANNELS = 4  # images with so few take forms of their own
PADDED = 256  # positions of a result from which its kernel gradient pads the image before
PHASED = 784  # and from which it takes strides apart


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static side of a convolution: image size, kernel size, strides, ((top, bottom), (left, right)) padding."""

    size: Pair
    kernel: Pair
    strides: Pair
    padding: tuple[Pair, Pair]

    @property
    def output(self) -> Pair:
        """Height and width of the result."""
        rows, columns = ((n + sum(p) - k) // s + 1
                         for n, k, s, p in zip(self.size, self.kernel, self.strides, self.padding, strict=True))
        return rows, columns

    @property
    def seen(self) -> Pair:
        """Height and width of what the windows see, padding included."""
        rows, columns = ((o - 1) * s + k for o, s, k in zip(self.output, self.strides, self.kernel, strict=True))
        return rows, columns

    @property
    def cramped(self) -> bool:
        """Whether the kernel exceeds the image or the result: there XLA:CPU swaps operands onto a naive path."""
        return any(min(n, o) < k for n, o, k in zip(self.size, self.output, self.kernel, strict=True))


def convolution(geometry: Geometry) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """f(x [B, H, W, C], kernel [h, w, C, F]) -> [B, H', W', F]; any dtype, reverse-mode derivatives of any order."""
    return _bilinear(geometry)[0]


@functools.cache
def _bilinear(geometry: Geometry) -> tuple[Callable, Callable, Callable]:
    """The convolution, its gradient to the image f(g, kernel), its gradient to the kernel f(x, g)."""
    forward = differentiable(each_member(functools.partial(_forward, geometry), True),
                             lambda c, x, k: (to_image(c, k), to_kernel(x, c)))
    to_image = differentiable(each_member(functools.partial(_to_image, geometry), True),
                              lambda c, g, k: (forward(c, k), to_kernel(c, g)))
    to_kernel = differentiable(each_member(functools.partial(_to_kernel, geometry), False),
                               lambda c, x, g: (to_image(g, c), forward(x, c)))
    return forward, to_image, to_kernel


def differentiable(function: Callable, gradients: Callable) -> Callable:
    """`function` of two arrays, whose derivatives are `gradients`(cotangent, first, second)."""
    wrapped = jax.custom_vjp(function)

    def saved_pass(a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        a = shared(a)
        return wrapped(a, b), (a, b)  # the wrapped function, not the bare one: it can itself be differentiated

    wrapped.defvjp(saved_pass, lambda saved, cotangent: gradients(cotangent, *saved))
    return wrapped


def each_member(function: Callable, folds: bool) -> Callable:
    """`function` of two arrays which under vmap runs once per member instead of as one grouped convolution.

    `folds`: whether members that share the second array may be joined along the batch axis of the first.
    """
    # Traced once per shape, not once per layer: some of these have hundreds of operations.
    batched = jax.custom_batching.custom_vmap(jax.jit(function))

    @batched.def_vmap
    def rule(members: int, mapped: list[bool], a: jax.Array, b: jax.Array):
        if folds and mapped[0] and not mapped[1]:
            joined = batched(a.reshape(-1, *a.shape[2:]), b)
            return joined.reshape(*a.shape[:2], *joined.shape[1:]), True

        def member(i):
            return batched(a[i] if mapped[0] else a, b[i] if mapped[1] else b)

        if members > UNROLLED_MEMBERS:
            return lax.map(member, jnp.arange(members)), True
        return jnp.stack([member(i) for i in range(members)]), True

    return batched


def _forward(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    features = kernel.shape[3]
    if _folds(geometry, x.shape[3]):
        return _forward(_fold(geometry), _folded(geometry, x), _folded_kernel(geometry, kernel))
    if geometry.cramped or (2 <= x.shape[3] <= FEW_CHANNELS and max(geometry.kernel) <= 3):
        return product(_patches(geometry, x), kernel.reshape(-1, features))
    # Eigen reads four channels at a time; a count that does not divide by four costs up to ten times as much.
    channels = 0 if x.shape[3] == 1 else -x.shape[3] % 4
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, channels), (0, _more_features(features))))
    y = lax.conv_general_dilated(x, kernel, geometry.strides, geometry.padding, dimension_numbers=LAYOUT)
    return y[..., :features]


def _to_image(geometry: Geometry, g: jax.Array, kernel: jax.Array) -> jax.Array:
    wide = min(geometry.kernel) >= 5 and max(geometry.size) <= 8
    if geometry.cramped or geometry.strides != (1, 1) or kernel.shape[2] < 8 or wide:
        return _overlap_add(geometry, g, kernel)
    more = -kernel.shape[3] % 4
    g = jnp.pad(g, ((0, 0), (0, 0), (0, 0), (0, more)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, more)))
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    padding = [(k - 1 - low, n - o + low)
               for k, n, o, (low, _) in zip(geometry.kernel, geometry.size, geometry.output, geometry.padding,
                                            strict=True)]
    return lax.conv_general_dilated(g, turned, (1, 1), padding, dimension_numbers=LAYOUT)


def _to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    shape = (*geometry.kernel, x.shape[3], g.shape[3])
    if geometry.cramped:
        patches = _patches(geometry, x)
        return product(patches.reshape(-1, patches.shape[-1]).T, g.reshape(-1, g.shape[-1])).reshape(shape)
    if _folds(geometry, x.shape[3]):
        return _unfolded_kernel(geometry, _to_kernel(_fold(geometry), _folded(geometry, x), g))
    if geometry.strides != (1, 1) and math.prod(geometry.output) >= PHASED:
        return _to_kernel_by_phases(geometry, x, g)
    g = jnp.pad(g, ((0, 0), (0, 0), (0, 0), (0, _more_features(g.shape[3]))))
    total = _correlate(geometry, x, g)
    return jnp.transpose(total, (1, 2, 0, 3))[..., :shape[3]].astype(x.dtype)


def _more_features(features: int) -> int:
    """How many zero features to add: 50 -> 64 saves a third of the time, 20 -> 32 would cost more than it saves."""
    return -features % 16 if features % 4 and features > 32 else 0


def _pieces(batch: int, positions: int) -> int:
    if jax.device_count() > 1:  # the compiler would sum every piece over the devices for itself, and might cut examples
        return 1
    pieces = 1
    while pieces < PIECES and batch % (2 * pieces) == 0 and batch // pieces * positions > CONTRACTION:
        pieces *= 2
    return pieces


def _correlate(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """Kernel gradient [C, h, w, F] in float32 at least, as convolutions whose batch is C and whose channels are B."""
    pieces = _pieces(x.shape[0], math.prod(geometry.output))
    padding = _margins(geometry, geometry.seen)
    if math.prod(geometry.output) >= PADDED:  # there, XLA:CPU reads value by value what it pads itself
        x, padding = _fitted(geometry, x, geometry.seen), UNPADDED
    return sum(lax.conv_general_dilated(
        jnp.transpose(image, (3, 1, 2, 0)), jnp.transpose(gradient, (1, 2, 0, 3)), (1, 1), padding,
        rhs_dilation=geometry.strides, dimension_numbers=LAYOUT,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
        for image, gradient in zip(jnp.split(x, pieces), jnp.split(g, pieces), strict=True))


def _to_kernel_by_phases(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """Rows and columns of the image by their remainder modulo the stride: each sees other taps, with stride 1."""
    x, (sh, sw), (rows, columns) = _fitted(geometry, x, geometry.seen), geometry.strides, geometry.output
    total = jnp.zeros((*geometry.kernel, x.shape[3], g.shape[3]), x.dtype)
    for first in itertools.product(*(range(min(s, k)) for s, k in zip(geometry.strides, geometry.kernel, strict=True))):
        height, width = (len(range(f, k, s)) for f, k, s in zip(first, geometry.kernel, geometry.strides, strict=True))
        phase = Geometry((rows - 1 + height, columns - 1 + width), (height, width), (1, 1), UNPADDED)
        seen = x[:, first[0]::sh, first[1]::sw][:, :phase.size[0], :phase.size[1]]
        edges = [(f, k - f - (n - 1) * s - 1, s - 1)
                 for f, k, n, s in zip(first, geometry.kernel, phase.kernel, geometry.strides, strict=True)]
        total += lax.pad(_to_kernel(phase, seen, g), jnp.zeros((), x.dtype), [*edges, (0, 0, 0), (0, 0, 0)])
    return total


def _margins(geometry: Geometry, size: Pair) -> list[Pair]:
    """What to add before and after (below zero: to cut), so that `size` is left from the first pixel that is seen."""
    return [(low, to - n - low) for n, to, (low, _) in zip(geometry.size, size, geometry.padding, strict=True)]


def _fitted(geometry: Geometry, x: jax.Array, size: Pair) -> jax.Array:
    """The image padded or cut to `size`; its first pixel is the first that the windows see."""
    edges = [(*margins, 0) for margins in _margins(geometry, size)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _folds(geometry: Geometry, channels: int) -> bool:
    """Whether the pixels of a stride become channels, as XLA:CPU is slow with few of them."""
    return channels <= FEW_CHANNELS and min(geometry.strides) > 1


def _fold(geometry: Geometry) -> Geometry:
    """The convolution whose pixels are the blocks of strides x strides pixels of this one."""
    blocks = tuple(-(-k // s) for k, s in zip(geometry.kernel, geometry.strides, strict=True))
    return Geometry(tuple(o - 1 + n for o, n in zip(geometry.output, blocks, strict=True)), blocks, (1, 1), UNPADDED)


def _folded(geometry: Geometry, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H'', W'', s s' C], the image of `_fold`."""
    (rows, columns), (sh, sw) = _fold(geometry).size, geometry.strides
    x = _fitted(geometry, x, (rows * sh, columns * sw))
    return jnp.swapaxes(x.reshape(x.shape[0], rows, sh, columns, sw, x.shape[3]), 2, 3).reshape(
        x.shape[0], rows, columns, -1)


def _folded_kernel(geometry: Geometry, kernel: jax.Array) -> jax.Array:
    """[h, w, C, F] -> [h', w', s s' C, F], the kernel of `_fold`."""
    (rows, columns), (sh, sw) = _fold(geometry).kernel, geometry.strides
    kernel = jnp.pad(kernel, ((0, rows * sh - kernel.shape[0]), (0, columns * sw - kernel.shape[1]), (0, 0), (0, 0)))
    kernel = jnp.swapaxes(kernel.reshape(rows, sh, columns, sw, *kernel.shape[2:]), 1, 2)
    return kernel.reshape(rows, columns, -1, kernel.shape[5])


def _unfolded_kernel(geometry: Geometry, kernel: jax.Array) -> jax.Array:
    """The inverse of `_folded_kernel`."""
    (rows, columns), (sh, sw) = _fold(geometry).kernel, geometry.strides
    kernel = jnp.swapaxes(kernel.reshape(rows, columns, sh, sw, -1, kernel.shape[3]), 1, 2)
    return kernel.reshape(rows * sh, columns * sw, *kernel.shape[4:])[:geometry.kernel[0], :geometry.kernel[1]]


def _patches(geometry: Geometry, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', h * w * C], the windows under the kernel, in the order of the kernel's axes."""
    x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
    return jnp.concatenate([window(x, i, j, geometry.output, geometry.strides)
                            for i, j in itertools.product(*map(range, geometry.kernel))], -1)


def window(x: jax.Array, row: int, column: int, output: Pair, strides: Pair) -> jax.Array:
    """What one tap of the kernel sees of the padded image: [B, H', W', C]."""
    return x[:, row:row + (output[0] - 1) * strides[0] + 1:strides[0],
             column:column + (output[1] - 1) * strides[1] + 1:strides[1]]


def _overlap_add(geometry: Geometry, g: jax.Array, kernel: jax.Array) -> jax.Array:
    """Image gradient as one matrix product, whose windows are then added where they lay in the image."""
    channels, features = kernel.shape[2:]
    windows = product(g, kernel.reshape(-1, features).T)
    total = 0.0
    for number, tap in enumerate(itertools.product(*map(range, geometry.kernel))):
        edges = [(0, 0, 0)]
        for offset, n, o, s, (low, _) in zip(tap, geometry.size, geometry.output, geometry.strides,
                                             geometry.padding, strict=True):
            first = offset - low
            edges.append((first, n - first - (o - 1) * s - 1, s - 1))
        part = windows[..., number * channels:(number + 1) * channels]
        total += lax.pad(part.astype(jnp.promote_types(g.dtype, jnp.float32)), 0.0, [*edges, (0, 0, 0)])
    return total.astype(g.dtype)
