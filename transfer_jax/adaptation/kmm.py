"""Kernel mean matching: weights under which the mean of the source in feature space is that of the target."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.adaptation.domains import two_domains
from transfer_jax.adaptation.kernels import gaussian, median_distance, squared_distances
from transfer_jax.adaptation.precision import in_double
from transfer_jax.adaptation.weighting import Array, Weighted, equal_weights, finished, positive
from transfer_jax.core.errors import UserError

MOST = 20000  # source examples whose kernel, n_s^2 numbers, fits into the memory of a common machine


@in_double
def kmm(source: Array, target: Array, key: jax.Array | None = None, *, bandwidth: float | None = None,
        bound: float = 10.0, slack: float | None = None, ridge: float = 1e-2, tolerance: float = 1e-10,
        steps: int = 20000) -> Weighted:
    """Kernel mean matching (Huang et al. 2007): min 1/2 b'(K + n_s ridge I)b - k'b, k = n_s/n_t K_st 1, subject to
    0 <= b <= bound and |mean b - 1| <= slack, with a Gaussian kernel.

    Solved by accelerated projected gradients (Nesterov 1983) with restarts (O'Donoghue and Candes 2015); every iterate
    satisfies the constraints, and it stops when the linearised gap (Frank and Wolfe 1956), which bounds the distance to
    the optimum, is small. With the bound 1000 and no ridge, as the authors have it, the exact solution puts nearly all
    weight on a few examples at which the kernel matrix is ill-conditioned; hence other defaults here.

    Args:
        source, target: [n_s, d] and [n_t, d].
        key: unused; nothing is drawn.
        bandwidth: None: the median of the distances.
        bound: largest weight before the mean is made one.
        slack: None: (sqrt n_s - 1) / sqrt n_s, as Huang et al. have it, but not above 0.1.
        ridge: a share of the number of source examples added to the diagonal; 0 is the program of the paper.
        tolerance: on the objective divided by n_s^2, the scale of the squared distance of means.

    Returns:
        Weights float64 [n_s] with mean one, and metrics: bandwidth, objective (of b before its mean is made one,
        divided by n_s^2), gap, mean (of b).
    """
    positive("the bandwidth of KMM", bandwidth)
    source, target = two_domains(source, target)
    count = len(source)
    if count > MOST:
        raise UserError(f"KMM needs a matrix of {count} x {count} numbers; give at most {MOST} source examples, or use "
                        f"kliep, ulsif or rulsif, whose time grows with their number alone")
    if bound < 1 or ridge < 0 or (slack is not None and slack < 0):
        raise UserError(f"KMM has bound {bound}, ridge {ridge} and slack {slack}; weights of mean one need a bound of "
                        f"1 or more, and the others cannot be negative")
    scale = median_distance(source, target)
    if scale == 0:
        return equal_weights(count)
    bandwidth = scale if bandwidth is None else bandwidth
    slack = min((np.sqrt(count) - 1) / np.sqrt(count), 0.1) if slack is None else slack
    matrix, linear = program(source, target, bandwidth, ridge)
    solution, gap = minimise(matrix, linear, bound, count * max(1 - slack, 0), count * (1 + slack), tolerance, steps)
    objective = solution @ (matrix @ solution / 2 - linear)
    return finished(np.asarray(solution), bandwidth=bandwidth, objective=objective, gap=gap, mean=solution.mean())


@in_double
def program(source: Array, target: Array, bandwidth: float, ridge: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """(K + n_s ridge I) / n_s^2 [n_s, n_s] and k / n_s^2 [n_s]."""
    return _program(jnp.asarray(source), jnp.asarray(target), bandwidth, ridge)


@jax.jit
def _program(source: jax.Array, target: jax.Array, bandwidth: float, ridge: float) -> tuple[jax.Array, jax.Array]:
    count = len(source)
    matrix = gaussian(squared_distances(source, source), bandwidth)
    matrix = (matrix + matrix.T) / 2 + count * ridge * jnp.eye(count)
    linear = gaussian(squared_distances(source, target), bandwidth).mean(1) * count
    return matrix / count ** 2, linear / count ** 2


@functools.partial(jax.jit, static_argnames="steps")
def minimise(matrix: jax.Array, linear: jax.Array, bound: float, low: float, high: float, tolerance: float,
             steps: int) -> tuple[jax.Array, jax.Array]:
    """argmin 1/2 b'Mb - l'b over 0 <= b <= bound and low <= sum b <= high, and how far from the least value at most."""
    # The largest row sum of a matrix without negative entries is an upper bound of its eigenvalues.
    rate = 1 / matrix.sum(1).max()

    def step(carried: tuple) -> tuple:
        now, ahead, momentum, _, _, count = carried
        new = project(ahead - rate * (matrix @ ahead - linear), bound, low, high)
        restart = ((ahead - new) * (new - now)).sum() > 0
        follow = jnp.where(restart, 1.0, (1 + jnp.sqrt(1 + 4 * momentum ** 2)) / 2)
        ahead = new + jnp.where(restart, 0.0, (momentum - 1) / follow) * (new - now)
        gradient = matrix @ new - linear
        gap = (gradient * (new - cheapest(gradient, bound, low, high))).sum()
        return new, ahead, follow, gap, gradient, count + 1

    def going(carried: tuple) -> jax.Array:
        *_, gap, _, count = carried
        return (count < steps) & (gap > tolerance)

    start = project(jnp.ones_like(linear), bound, low, high)
    begin = start, start, jnp.ones((), linear.dtype), jnp.asarray(jnp.inf, linear.dtype), linear, 0
    found, *_, gap, _, _ = jax.lax.while_loop(going, step, begin)
    return found, gap


def project(point: jax.Array, bound: float, low: float, high: float) -> jax.Array:
    """The nearest point with 0 <= b <= bound and low <= sum b <= high: clip(point - shift), the shift by bisection."""
    free = jnp.clip(point, 0, bound)
    total = jnp.clip(free.sum(), low, high)

    def halve(_: int, ends: tuple) -> tuple:
        left, right = ends
        middle = (left + right) / 2
        above = jnp.clip(point - middle, 0, bound).sum() > total
        return jnp.where(above, middle, left), jnp.where(above, right, middle)

    ends = jax.lax.fori_loop(0, 80, halve, (point.min() - bound, point.max()))
    return jnp.where(total == free.sum(), free, jnp.clip(point - ends[1], 0, bound))


def cheapest(gradient: jax.Array, bound: float, low: float, high: float) -> jax.Array:
    """argmin gradient'b over the same set: as much as allowed where the gradient is lowest."""
    order = jnp.argsort(gradient)
    amount = jnp.clip(bound * (gradient < 0).sum(), low, high)
    filled = jnp.clip(amount - bound * jnp.arange(len(gradient)), 0, bound)
    return jnp.zeros_like(gradient).at[order].set(filled)
