"""Gaussian kernels between all vectors of two batches: widths, blocked sums, and the conventions of other libraries.

Matrices of kernels are never kept: sums over them run in blocks of rows whose values are computed again for the
gradient, so that memory grows with the number of vectors and not with its square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError, unknown

# Entries of a kernel matrix that are computed at once: 4 MiB of float32.
BLOCK = 2**20

ESTIMATORS = ("biased", "unbiased", "linear", "ring")
BANDWIDTHS = ("mean", "mean_with_self", "median", "source_median")

Layers = tuple[jax.Array, ...]
Profile = Callable[[Layers], jax.Array]


@dataclass(frozen=True)
class Settings:
    """Kernel exp(-|x - y|^2 / (m b)), mean or sum over the multipliers m; how b is found and the MMD is estimated.

    `offset` c adds c / (n - 1) to an estimate from n examples of each domain.
    """

    bandwidth: float | str = "mean"
    multipliers: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)
    kernels: str = "mean"
    estimator: str = "biased"
    offset: float = 0.0


# What other libraries compute. Their values differ by more than a factor, so a weight belongs to its convention.
CONVENTIONS = {
    "default": Settings(),
    # exp(-D / (2 s^2)) with s^2 = 2^k times the mean over all (2n)^2 entries, k = -3..1
    "tllib": Settings("mean_with_self", (0.25, 0.5, 1.0, 2.0, 4.0), "sum", "unbiased", 2.0),
    # the published code of DAN: widths 2^k / 2^2, k = 0..4
    "xlearn": Settings("mean", (0.25, 0.5, 1.0, 2.0, 4.0), "mean", "unbiased"),
    "jindongwang": Settings("mean", (0.25, 0.5, 1.0, 2.0, 4.0), "sum", "biased"),
    "pytorch_adapt": Settings("source_median", (1.0,), "mean", "unbiased"),
    # exp(-gamma D) with gamma = 10^-3 .. 10^3
    "domainbed": Settings(1.0, (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3), "sum", "biased"),
}


def resolve(term: str, convention: str, **chosen) -> Settings:
    """The settings of a convention with those in place of it that are not None.

    Raises:
      UserError: for a name or number that does not fit.
    """
    if convention not in CONVENTIONS:
        raise unknown("convention", convention, CONVENTIONS, term)
    settings = replace(CONVENTIONS[convention], **{key: value for key, value in chosen.items() if value is not None})
    for key, valid in (("estimator", ESTIMATORS), ("kernels", ("mean", "sum"))):
        if getattr(settings, key) not in valid:
            raise UserError(f"{term}: {key} = {getattr(settings, key)!r} does not fit; use "
                            f"{' or '.join(map(repr, valid))}")
    width = settings.bandwidth
    if width not in BANDWIDTHS if isinstance(width, str) else width <= 0:
        raise UserError(f"{term}: bandwidth = {width!r} does not fit; use {', '.join(map(repr, BANDWIDTHS))} or a "
                        f"number > 0")
    if not settings.multipliers or min(settings.multipliers) <= 0:
        raise UserError(f"{term}: multipliers = {tuple(settings.multipliers)} do not fit; give numbers > 0")
    return settings


def gaussian(squared: jax.Array, width: jax.Array | float, multipliers: Sequence[float], kernels: str) -> jax.Array:
    """Squared distances -> sum over the multipliers m, or mean, of exp(-squared / (m width))."""
    total = sum(jnp.exp(-squared / (multiplier * width)) for multiplier in multipliers)
    return total / len(multipliers) if kernels == "mean" else total


def centred(source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both around the mean of all vectors: distances stay, and the squared lengths they come from cancel least."""
    mean = jax.lax.stop_gradient((jnp.sum(source, 0) + jnp.sum(target, 0)) / (len(source) + len(target)))
    return source - mean, target - mean


def width(source: jax.Array, target: jax.Array, bandwidth: float | str) -> jax.Array:
    """The width b for two batches of vectors [Bs, d], [Bt, d], a constant for the gradient; 1 where it would be 0.

    'mean' and 'median' are of the squared distances of all distinct pairs of both batches together; 'mean_with_self'
    counts the zeros between each vector and itself; 'source_median' is the middle one, of two the smaller, of all
    Bs^2 entries of the source. Means cost nothing; medians keep the matrix of distances and count in it 31 times.
    """
    source, target = jax.lax.stop_gradient((source, target))
    both = jnp.concatenate([source, target])
    count = len(both)
    if bandwidth in ("mean", "mean_with_self"):
        # sum_ij |x_i - x_j|^2 = 2 n sum_i |x_i - mean|^2
        spread = 2 * jnp.sum(jnp.square(both - jnp.mean(both, axis=0)))
        found = spread / (count - 1 if bandwidth == "mean" else count)
    elif bandwidth == "median":
        # Sorted, the matrix holds its diagonal's zeros first, then every pair twice.
        pairs, bits = count * (count - 1) // 2, _distance_bits(both)
        found = order_statistic(bits, count + 2 * ((pairs - 1) // 2))
        if pairs % 2 == 0:
            found = (found + _at_or_above(bits, found, count + pairs)) / 2
    elif bandwidth == "source_median":
        found = order_statistic(_distance_bits(source), (len(source)**2 - 1) // 2)
    else:
        return jnp.asarray(bandwidth, jnp.float32)
    return jnp.where(found > 0, found, 1.0)  # all vectors equal, as behind a dead layer


def order_statistic(bits: jax.Array, index: int) -> jax.Array:
    """The number of 0-based place `index` among floats >= 0, given as their bits, int32 of any shape.

    Such floats are ordered like their bits, so the answer is found bit by bit, by counting: no sort, and no copy.
    """
    def settle(turn, found):
        candidate = found | jnp.left_shift(1, 30 - turn)
        return jnp.where(jnp.sum(bits < candidate) <= index, candidate, found)

    found = jax.lax.fori_loop(0, 31, settle, jnp.zeros((), jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def _at_or_above(bits: jax.Array, value: jax.Array, index: int) -> jax.Array:
    """The number of 0-based place `index` among those of `bits` [blocks, ...], given that of the place before."""
    bound = jax.lax.bitcast_convert_type(value, jnp.int32)
    # Block by block: one minimum over all would first write the whole matrix anew.
    above = jnp.min(jax.lax.map(lambda block: jnp.min(jnp.where(block > bound, block, jnp.iinfo(jnp.int32).max)), bits))
    return jnp.where(jnp.sum(bits <= bound) > index, value, jax.lax.bitcast_convert_type(above, jnp.float32))


def kernel_sum(profile: Profile, left: Layers, right: Layers, left_weights: jax.Array | None = None,
               right_weights: jax.Array | None = None, same: bool = False, distinct: bool = False) -> jax.Array:
    """sum_ij (a_i . b_j) k(x_i, y_j), float32.

    Args:
      profile: squared distances, one array per layer -> kernel values of that shape.
      left, right: float32 x [N, d] and y [M, d], one pair per layer, centred.
      left_weights, right_weights: float32 a [N, C], b [M, C]; None: every pair counts 1.
      same: whether x and y are the same vectors: the diagonal's distances are then 0 to the last bit.
      distinct: leaves the diagonal out.
    """
    count, others = len(left[0]), len(right[0])

    def block(rows, numbers, weights):
        diagonal = same & (numbers[:, None] == jnp.arange(others)[None, :])
        values = profile(tuple(jnp.where(diagonal, 0.0, squared_distances(x, y))
                               for x, y in zip(rows, right, strict=True)))
        values = jnp.where(distinct & diagonal, 0.0, values)
        if weights is not None:
            values *= jnp.matmul(weights, right_weights.T, precision="highest")
        return jnp.sum(jnp.where(numbers[:, None] < count, values, 0.0))

    height = max(1, BLOCK // others)
    if count <= height:
        return block(left, jnp.arange(count), left_weights)
    rows, weights = jax.tree.map(lambda x: _in_blocks(x, height), (left, left_weights))
    numbers = jnp.arange(len(rows[0]) * height).reshape(-1, height)
    return jnp.sum(jax.lax.map(jax.checkpoint(lambda part: block(*part)), (rows, numbers, weights)))


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """float32 [N, d], [M, d] -> |x_i - y_j|^2, [N, M], by a matrix product; never negative."""
    squared = (jnp.sum(jnp.square(x), axis=-1)[:, None] + jnp.sum(jnp.square(y), axis=-1)[None, :]
               - 2 * jnp.matmul(x, y.T, precision="highest"))
    return jnp.maximum(squared, 0.0)


def paired(profile: Profile, left: Layers, right: Layers) -> jax.Array:
    """k(x_i, y_i) for layers of equally many vectors [N, d]: [N]."""
    return profile(tuple(jnp.sum(jnp.square(x - y), axis=-1) for x, y in zip(left, right, strict=True)))


def _in_blocks(x: jax.Array, height: int) -> jax.Array:
    """[N, ...] -> [blocks, height, ...], the end filled with zeros."""
    blocks = -(-len(x) // height)
    filled = jnp.pad(x, ((0, blocks * height - len(x)),) + ((0, 0),) * (x.ndim - 1))
    return filled.reshape(blocks, height, *x.shape[1:])


def _distance_bits(x: jax.Array) -> jax.Array:
    """The bits, int32, of all squared distances of the vectors [N, d]; [blocks, height, N], the end filled up with
    those of infinity."""
    height = max(1, min(len(x), BLOCK // len(x)))
    x = x - jnp.mean(x, axis=0)

    def block(part):
        rows, numbers = part
        squared = jnp.where(numbers[:, None] == jnp.arange(len(x))[None, :], 0.0, squared_distances(rows, x))
        squared = jnp.where(numbers[:, None] < len(x), squared, jnp.inf)
        return jax.lax.bitcast_convert_type(squared, jnp.int32)

    rows = _in_blocks(x, height)
    return jax.lax.map(block, (rows, jnp.arange(rows.shape[0] * height).reshape(-1, height)))
