"""Small convex programs over weights that are not negative, by a primal-dual interior point method."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

Derivatives = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Point(NamedTuple):
    """An iterate: all of w and s is positive."""

    w: jax.Array  # [n]
    s: jax.Array  # [n], multipliers of w >= 0
    y: jax.Array  # multiplier of e'w = 1


def minimize_over_weights(derivatives: Derivatives, start: jax.Array, equality: jax.Array | None = None, *,
                          iterations: int = 60) -> jax.Array:
    """argmin f(w) over w >= 0, and e'w = 1 where `equality` gives e, for a smooth convex f.

    Mehrotra's predictor and corrector (1992; Nocedal & Wright 2006, algorithm 16.4) with one step length for primal and
    dual. The system is scaled by sqrt(w / s), so that its matrix is I + D H D: also a singular H (equal or dependent
    gradients) is solved. The loop ends at complementarity near the rounding of the dtype, when a factorisation fails
    there, or after `iterations`; nothing here says whether the result is good: measure its optimality.

    Args:
      derivatives: w -> gradient [n] and hessian [n, n] of f, of order 1.
      start: floating [n], > 0, with e'start = 1; of order 1.
      equality: [n], >= 0, not all 0, or None for no such condition.
      iterations: at most so many.

    Returns:
      w [n], of the dtype of `start`, all > 0.
    """
    e = jnp.zeros_like(start) if equality is None else equality
    end = 4 * jnp.finfo(start.dtype).eps

    def go_on(carry: tuple[Point, jax.Array, jax.Array]) -> jax.Array:
        point, number, stuck = carry
        loss = jnp.max(jnp.abs(derivatives(point.w)[0] - point.s - point.y * e))
        unfinished = (jnp.mean(point.w * point.s) > end) | (loss > 10 * end)
        return unfinished & (number < iterations) & ~stuck

    def advance(carry: tuple[Point, jax.Array, jax.Array]) -> tuple[Point, jax.Array, jax.Array]:
        point, number, _ = carry
        new = _step(derivatives, e, point)
        fine = jnp.all(jnp.isfinite(jnp.concatenate([new.w, new.s, new.y[None]])))
        return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, point), number + 1, ~fine

    gradient = derivatives(start)[0]
    least = jnp.min(gradient) - 1
    y = jnp.where(jnp.any(e > 0), least / jnp.maximum(jnp.max(e), 1e-6), 0.0).astype(start.dtype)
    s = jnp.maximum(gradient - y * e, 1.0)
    return jax.lax.while_loop(go_on, advance, (Point(start, s, y), jnp.int32(0), jnp.bool_(False)))[0].w


def _step(derivatives: Derivatives, e: jax.Array, point: Point) -> Point:
    w, s, y = point
    gradient, hessian = derivatives(w)
    scale = jnp.sqrt(w / s)
    factor = jnp.linalg.cholesky(jnp.eye(len(w), dtype=w.dtype) + scale[:, None] * hessian * scale)

    def solve(right: jax.Array) -> jax.Array:
        return scale * cho_solve((factor, True), scale * right)

    along = solve(e)
    curvature = jnp.sum(e * along)

    def direction(target: jax.Array) -> Point:
        """Newton's step toward w s = target."""
        free = solve(target / w - gradient + y * e)
        lacking = jnp.where(curvature > 0, 1 - jnp.sum(e * w), 0.0) - jnp.sum(e * free)
        dy = jnp.where(curvature > 0, lacking / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        dw = free + dy * along
        return Point(dw, target / w - s - s / w * dw, dy)

    mean = jnp.mean(w * s)
    affine = direction(jnp.zeros_like(w))
    length = _longest(point, affine)
    left = jnp.mean((w + length * affine.w) * (s + length * affine.s))
    centring = (left / mean) ** 3
    final = direction(centring * mean - affine.w * affine.s)
    length = jnp.minimum(1.0, 0.99 * _longest(point, final))
    return jax.tree.map(lambda old, change: old + length * change, point, final)


def _longest(point: Point, change: Point) -> jax.Array:
    """The largest step <= 1 / 0.99 that keeps w and s from passing 0."""
    ratios = [jnp.where(d < 0, -x / jnp.where(d < 0, d, -1.0), jnp.inf) for x, d in ((point.w, change.w),
                                                                                  (point.s, change.s))]
    return jnp.minimum(jnp.min(jnp.concatenate(ratios)), 1 / 0.99)
