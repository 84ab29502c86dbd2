"""Weights of gradients as the bargain that is fair to all tasks: K a = a^(-1 / alpha)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.gramian import Ruled, combined, gramian, reported


class Iterate(NamedTuple):
    weights: jax.Array  # [T]
    residual: jax.Array
    number: jax.Array
    stuck: jax.Array


def nash_mtl(gradients: jax.Array, *, tolerance: float | None = None) -> Ruled:
    """sum_i a_i g_i with K a = 1 / a: Nash's bargain, in which every task gains in the same proportion to what its
    weight is worth (Navon et al. 2022, claim 3.1).

    `fairgrad` with alpha = 1. The result does not depend on the lengths of the gradients, and has itself the length
    sqrt(T), however close the optimum: let the learning rate fall. Where a combination of the gradients with
    non-negative weights is 0 there is no bargain: NaN (see `reported`), never equal weights.

    Args and returns: as `fairgrad`.
    """
    return fairgrad(gradients, alpha=1.0, tolerance=tolerance)


def fairgrad(gradients: jax.Array, *, alpha: float = 2.0, tolerance: float | None = None) -> Ruled:
    """sum_i a_i g_i with a > 0 and K a = a^(-1 / alpha): the alpha-fair gains of the tasks (FairGrad; Ban & Ji 2024,
    section 4; Mo & Walrand 2000).

    alpha = 1 is Nash's bargain, large alpha serves the worst task. Residual: max_i |(K a)_i a_i^(1 / alpha) - 1|;
    float32 reaches about 1e-6 while the cosines' condition number is below 1e4, and less beyond. Every d . g_i is
    positive. A gradient of 0 takes no part.

    Args:
      gradients: float [T, P], the flattened gradient of each task's loss.
      alpha: > 0.
      tolerance: see `reported`.

    Returns:
      float32 [P] (float64 for float64), and the metrics of `reported`.
    """
    if alpha <= 0:
        raise UserError(f"fairgrad: alpha = {alpha} does not fit; give a number > 0")
    of = gramian(gradients)
    # With b = diag(norms) a / m and C the cosines, C b = c b^(-1 / alpha) where c = |g|^(1 / alpha - 1) over its
    # geometric mean, and m = (that mean)^(alpha / (1 + alpha)).
    logs = jnp.where(of.active, jnp.log(jnp.where(of.active, of.norms, 1.0)), 0.0)
    shares = (1 / alpha - 1) * logs
    middle = jnp.sum(shares) / jnp.maximum(jnp.sum(of.active), 1)
    shares = jnp.where(of.active, jnp.exp(shares - middle), 1.0)
    b, _ = alpha_fair(of.cosines, shares, 1 / alpha)
    size = jnp.exp(middle * alpha / (1 + alpha))
    b = jnp.where(of.active, b, 0.0)
    direction = combined(of.units, b)
    # Measured on the result itself: where gradients oppose each other, rounded cosines may have a solution.
    slopes = jnp.matmul(of.units, direction, precision="highest")
    residual = jnp.max(jnp.where(of.active, jnp.abs(slopes * b ** (1 / alpha) / shares - 1), 0.0))
    return reported(of, size * b, residual, tolerance)


def alpha_fair(matrix: jax.Array, shares: jax.Array, power: float, *, iterations: int = 100,
               ) -> tuple[jax.Array, jax.Array]:
    """The a > 0 with matrix a = shares a^(-power), and its relative residual.

    The condition is the stationarity of the convex a'Ma / 2 - sum shares a^(1 - power) / (1 - power) (a logarithm for
    power 1). Newton's steps for it, of matrix AMA + diag(power shares a^(1 - power)) with A = diag(a), positive
    definite, are taken in log a, and halved until the function falls (Armijo), so a stays positive.

    Args:
      matrix: floating [T, T], positive semidefinite, of order 1.
      shares: [T], > 0, of order 1.
      power: > 0.
      iterations: at most so many; where no solution exists, a grows until then.

    Returns:
      a [T]; max_i |(matrix a)_i / (shares_i a_i^-power) - 1|, a scalar, not small where no solution exists.
    """
    eps = jnp.finfo(matrix.dtype).eps
    halvings = 0.5 ** jnp.arange(24, dtype=matrix.dtype)

    def value(logs: jax.Array) -> jax.Array:
        a = jnp.exp(logs)
        gains = logs if power == 1 else jnp.expm1((1 - power) * logs) / (1 - power)
        return a @ matrix @ a / 2 - jnp.sum(shares * gains)

    def residual(logs: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs((matrix @ jnp.exp(logs)) * jnp.exp(power * logs) / shares - 1))

    def advance(old: Iterate) -> Iterate:
        logs, a = old.weights, jnp.exp(old.weights)
        gains = shares * a * jnp.exp(-power * logs)
        slope = a * (matrix @ a) - gains
        # The root of the gains scales the matrix to power I + something positive semidefinite.
        root = jnp.sqrt(gains)
        scaled = (a / root)[:, None] * matrix * (a / root) + power * jnp.eye(len(a), dtype=a.dtype)
        step = jnp.linalg.solve(scaled, -slope / root) / root
        step = step / jnp.maximum(1.0, jnp.max(jnp.abs(step)) / 5)
        here, fall = value(logs), slope @ step
        trials = jax.vmap(value)(logs + halvings[:, None] * step)
        falls = trials <= here + 1e-4 * halvings * fall
        new = logs + halvings[jnp.argmax(falls)] * step
        # Near the optimum differences of the function drown in rounding: there the residual decides.
        full = logs + step
        better = residual(full) < old.residual
        new = jnp.where(better | ~jnp.any(falls), full, new)
        left = residual(new)
        fine = jnp.isfinite(left) & (jnp.any(falls) | better)
        return Iterate(jnp.where(fine, new, logs), jnp.where(fine, left, old.residual), old.number + 1, ~fine)

    def go_on(now: Iterate) -> jax.Array:
        return (now.residual > 2 * len(shares) * eps) & (now.number < iterations) & ~now.stuck

    start = jnp.zeros_like(shares)
    found = jax.lax.while_loop(go_on, advance, Iterate(start, residual(start), jnp.int32(0), jnp.bool_(False)))
    return jnp.exp(found.weights), found.residual
