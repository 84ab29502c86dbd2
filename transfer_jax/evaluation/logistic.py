"""Multinomial logistic regression for many strengths of the penalty and many subsets of the rows in one program.

What is solved is convex, so the result does not depend on how. Three things make it fast: the features are rotated into
their principal axes, where the curvature is nearly diagonal and is divided out; all subsets (and several strengths)
share each product with the features; and since logits are linear in the parameters, a line search needs no product.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

MEMORY = 10  # pairs of steps and changes of the gradient that L-BFGS remembers
LINE_STEPS = 20
PATIENCE = 50  # iterations without a smaller gradient after which rounding is the limit
EPISODE_BYTES = 2 ** 28
COLUMNS = 64  # products with fewer columns leave the cores waiting for memory


class Path(NamedTuple):
    """Solutions for F subsets and L strengths.

    Attributes:
        weights: [F, L, D, C], in the coordinates of the features.
        bias: [F, L, C].
        objective: [F, L].
        gradient: [F, L], the largest entry of the gradient; at most the tolerance where the solver converged.
    """

    weights: jax.Array
    bias: jax.Array
    objective: jax.Array
    gradient: jax.Array


class _Point(NamedTuple):
    """Parameters of P problems with what was computed from them: all leading axes but those of logits are P."""

    weights: jax.Array  # [P, D, C]
    bias: jax.Array  # [P, C]
    logits: jax.Array  # [N, P, C]
    value: jax.Array  # [P]
    slopes: tuple[jax.Array, jax.Array]  # of the objective by weights and bias


def logistic_path(features: np.ndarray, labels: np.ndarray, classes: int, strengths: np.ndarray,
                  masks: np.ndarray | None = None, tolerance: float = 1e-5, max_iterations: int = 1000) -> Path:
    """Minimises mean cross-entropy + strength / 2 * |weights|^2 (the bias is free) by L-BFGS (Liu and Nocedal 1989).

    With n rows this is the optimum of scikit-learn's `LogisticRegression(C=1 / (n * strength))`; for two classes, where
    it has one vector in place of two, `weights[..., 1] - weights[..., 0]` is its `coef_`.

    Args:
        features: float [N, D], best standardised; computed in their dtype.
        labels: int [N] in [0, classes).
        strengths: [L], positive.
        masks: bool [F, N], the rows of each subset; None: one subset of all rows.
        tolerance: on the largest entry of the gradient.
    """
    x = jnp.asarray(features)
    count = len(features)
    masks = np.ones((1, count), bool) if masks is None else np.asarray(masks, bool)
    strengths = np.asarray(strengths, np.float64)
    order = np.argsort(-strengths, kind="stable")  # from the stiffest on: each block starts where the last one ended
    width = max(1, min(len(order), COLUMNS // (len(masks) * classes)))
    padded = np.concatenate([order, np.repeat(order[-1:], -len(order) % width)])
    # With two classes two vectors w/2 and -w/2 hold half of the square of one w.
    factor = 2.0 if classes == 2 else 1.0
    blocks = jnp.asarray(factor * strengths[padded].reshape(-1, width), x.dtype)
    shares = jnp.asarray(masks.T / masks.sum(1), x.dtype)
    found = _solve(x, jnp.asarray(labels), shares, blocks, jnp.asarray(tolerance, x.dtype), max_iterations, classes)
    back = np.argsort(order)  # [blocks, width, F, ...] -> [F, L, ...]
    return Path(*(jnp.moveaxis(part.reshape(-1, *part.shape[2:])[back], 0, 1) for part in found))


def logistic_episodes(features: np.ndarray, labels: np.ndarray, classes: int, strength: float, tolerance: float = 1e-5,
                      max_iterations: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Weights [E, D, C] and bias [E, C] of many small problems with examples of their own, in one program; as many at
    once as fit into about `EPISODE_BYTES`.

    Args:
        features: float [E, N, D], computed in their dtype.
        labels: int [N] in [0, classes), those of every problem.
        strength: as in `logistic_path`.
    """
    count, rows, width = features.shape
    dtype = jax.dtypes.canonicalize_dtype(features.dtype)
    each = dtype.itemsize * (rows * width + (2 * MEMORY + 4) * min(rows, width) * classes)
    size = min(count, max(1, EPISODE_BYTES // each))
    share = jnp.full((rows, 1), 1 / rows, dtype)
    block = jnp.full((1, 1), strength * (2.0 if classes == 2 else 1.0), dtype)  # two classes: as above
    found = []
    for start in range(0, count, size):
        part = features[start:start + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])  # one shape, one program
        weights, bias, *_ = _solve_each(jnp.asarray(padded, dtype), jnp.asarray(labels), share, block,
                                        jnp.asarray(tolerance, dtype), max_iterations=max_iterations, classes=classes)
        found.append((np.asarray(weights)[:len(part), 0, 0, 0], np.asarray(bias)[:len(part), 0, 0, 0]))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


@functools.partial(jax.jit, static_argnames=("max_iterations", "classes"))
def _solve_each(x: jax.Array, *shared: Any, max_iterations: int, classes: int) -> tuple[jax.Array, ...]:
    """`_solve` for each of x [E, N, D]."""
    return jax.vmap(lambda one: _solve(one, *shared, max_iterations, classes))(x)


@functools.partial(jax.jit, static_argnames=("max_iterations", "classes"))
def _solve(x: jax.Array, labels: jax.Array, shares: jax.Array, blocks: jax.Array, tolerance: jax.Array,
           max_iterations: int, classes: int) -> tuple[jax.Array, ...]:
    """(weights, bias, objective, gradient) of all blocks, [blocks, width, F, ...]."""
    z, basis, variances = _rotated(x)
    targets = jax.nn.one_hot(labels, classes, dtype=x.dtype)
    subsets, width, curvature = shares.shape[1], blocks.shape[1], (1 - 1 / classes) / classes
    shares = jnp.tile(shares, (1, width))

    def block(start: tuple[jax.Array, jax.Array], strengths: jax.Array) -> tuple[tuple, tuple]:
        penalties = jnp.repeat(strengths, subsets)
        scales = jnp.sqrt(curvature * variances + penalties[:, None])[..., None], curvature ** 0.5
        begin = tuple(jnp.tile(part, (width, *[1] * (part.ndim - 1))) for part in start)
        point, largest = _minimised(_Problem(z, targets, shares, penalties), begin, scales, tolerance, max_iterations)
        solved = jnp.einsum("dr,prc->pdc", basis, point.weights), point.bias, point.value, largest
        return (point.weights[-subsets:], point.bias[-subsets:]), tuple(
            part.reshape(width, subsets, *part.shape[1:]) for part in solved)

    start = jnp.zeros((subsets, z.shape[1], classes), x.dtype), jnp.zeros((subsets, classes), x.dtype)
    return jax.lax.scan(block, start, blocks)[1]


def _rotated(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features z = x basis [N, R] in principal axes, an orthonormal basis [D, R], and their mean squares [R]."""
    n, d = x.shape
    basis = jnp.eye(d, dtype=x.dtype)
    if d > n:  # optimal weights lie in the span of the rows
        basis, triangle = jnp.linalg.qr(x.T)
        x = triangle.T
    variances, axes = jnp.linalg.eigh(x.T @ x / n)
    return x @ axes, basis @ axes, jnp.maximum(variances, 0)


class _Problem(NamedTuple):
    """z [N, R], targets [N, C] one-hot, shares [N, P] of the rows in each problem's mean, penalties [P]."""

    z: jax.Array
    targets: jax.Array
    shares: jax.Array
    penalties: jax.Array

    def logits(self, weights: jax.Array, bias: jax.Array) -> jax.Array:
        """[N, P, C] of weights [P, R, C] and bias [P, C]: one product for all problems."""
        p, r, c = weights.shape
        return (self.z @ weights.transpose(1, 0, 2).reshape(r, p * c)).reshape(-1, p, c) + bias

    def at(self, weights: jax.Array, bias: jax.Array, logits: jax.Array) -> _Point:
        top = jax.nn.logsumexp(logits, -1)
        loss = (self.shares * (top - (logits * self.targets[:, None]).sum(-1))).sum(0)
        rest = self.shares[..., None] * (jnp.exp(logits - top[..., None]) - self.targets[:, None])
        n, p, c = rest.shape
        slope = (self.z.T @ rest.reshape(n, p * c)).reshape(-1, p, c).transpose(1, 0, 2)
        slope = slope + self.penalties[:, None, None] * weights
        value = loss + self.penalties / 2 * (weights ** 2).sum((1, 2))
        return _Point(weights, bias, logits, value, (slope, rest.sum(0)))

    def along(self, point: _Point, weights: jax.Array, change: jax.Array, step: jax.Array) -> tuple[jax.Array, ...]:
        """Value, slope and curvature [P] of the objective at `step` [P] of the direction whose logits are `change`."""
        logits = point.logits + step[:, None] * change
        top = jax.nn.logsumexp(logits, -1)
        probabilities = jnp.exp(logits - top[..., None])
        mean = (probabilities * change).sum(-1)
        goal, bend = self.targets[:, None], (probabilities * change ** 2).sum(-1) - mean ** 2
        square, mixed = (weights ** 2).sum((1, 2)), (weights * point.weights).sum((1, 2))
        value = (self.shares * (top - (logits * goal).sum(-1))).sum(0) + self.penalties / 2 * (
            (point.weights + step[:, None, None] * weights) ** 2).sum((1, 2))
        slope = (self.shares * (mean - (change * goal).sum(-1))).sum(0) + self.penalties * (mixed + step * square)
        return value, slope, (self.shares * bend).sum(0) + self.penalties * square


def _minimised(problem: _Problem, start: tuple[jax.Array, jax.Array], scales: tuple[jax.Array, float],
               tolerance: jax.Array, max_iterations: int) -> tuple[_Point, jax.Array]:
    """The minimum of every problem, and the largest entry of its gradient.

    Directions are those of L-BFGS for parameters multiplied by `scales`, the roots of the curvature to be expected.
    """
    memory = optax.scale_by_lbfgs(MEMORY)
    scaled = functools.partial(jax.tree.map, lambda scale, part: part * scale, scales)
    divided = functools.partial(jax.tree.map, lambda scale, part: part / scale, scales)

    def largest(point: _Point) -> jax.Array:
        return jnp.maximum(*(jnp.abs(slope).reshape(len(slope), -1).max(1) for slope in point.slopes))

    def step(carried: tuple) -> tuple:
        point, state, count, best, waited = carried
        direction, state = jax.vmap(memory.update)(divided(point.slopes), state, scaled((point.weights, point.bias)))
        weights, bias = divided(jax.tree.map(jnp.negative, direction))
        # What stands still remembers steps and changes of length zero: its direction may be anything, also infinite.
        sound = jnp.isfinite(weights).all((1, 2)) & jnp.isfinite(bias).all(1)
        idle = (best <= tolerance) | (waited >= PATIENCE) | ~sound
        weights, bias = jnp.where(idle[:, None, None], 0, weights), jnp.where(idle[:, None], 0, bias)
        change = problem.logits(weights, bias)
        length = _line_search(problem, point, weights, change, idle)
        point = problem.at(point.weights + length[:, None, None] * weights, point.bias + length[:, None] * bias,
                           point.logits + length[:, None] * change)
        now = largest(point)
        return point, state, count + 1, jnp.minimum(best, now), jnp.where(now < best, 0, waited + 1)

    def going(carried: tuple) -> jax.Array:
        *_, count, best, waited = carried
        return (count < max_iterations) & jnp.any((best > tolerance) & (waited < PATIENCE))

    point = problem.at(*start, problem.logits(*start))
    state = jax.vmap(memory.init)(scaled(start))
    begin = point, state, 0, largest(point), jnp.zeros(len(start[0]), jnp.int32)
    point, *_ = jax.lax.while_loop(going, step, begin)
    return point, largest(point)


def _line_search(problem: _Problem, point: _Point, weights: jax.Array, change: jax.Array,
                 idle: jax.Array) -> jax.Array:
    """A step [P] that satisfies Wolfe's conditions up to rounding, by Newton's method kept inside a bracket; 0 for
    problems that are `idle` and where there is none."""
    value, slope, _ = problem.along(point, weights, change, jnp.zeros_like(point.value))
    eps = jnp.finfo(value.dtype).eps  # what follows are the sizes of rounding errors of values and slopes
    slack, noise = 8 * eps * jnp.abs(value), 4 * eps * (problem.shares * jnp.abs(change).max(-1)).sum(0)

    def search(carried: tuple) -> tuple:
        step, low, high, _, count = carried
        at, rise, bend = problem.along(point, weights, change, step)
        good = (at <= value + 1e-4 * step * slope + slack) & (jnp.abs(rise) <= 0.5 * jnp.abs(slope) + noise)
        low, high = jnp.where(rise < 0, step, low), jnp.where(rise < 0, high, step)
        newton = step - rise / bend
        middle = jnp.where(jnp.isinf(high), 4 * step, (low + high) / 2)
        inside = (newton > low) & (newton < jnp.minimum(high, 10 * step))
        return jnp.where(good | idle, step, jnp.where(inside, newton, middle)), low, high, good | idle, count + 1

    one = jnp.where(idle, 0.0, jnp.ones_like(value))
    begin = one, jnp.zeros_like(one), jnp.full_like(one, jnp.inf), idle, 0
    step, _, _, good, _ = jax.lax.while_loop(lambda c: (c[-1] < LINE_STEPS) & ~c[3].all(), search, begin)
    return jnp.where(good, step, 0.0)
