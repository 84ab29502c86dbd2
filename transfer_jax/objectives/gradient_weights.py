"""Gradients of tasks become one by weights that a convex program of few variables finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.gramian import Gramian, Ruled, gramian, reported, shares, stand_ins
from transfer_jax.objectives.interior_point import minimize_over_weights


def mgda(gradients: jax.Array, present: jax.Array, *, tolerance: float | None = None) -> Ruled:
    """The shortest vector in the convex hull of the gradients (MGDA; Désidéri 2012; Sener & Koltun 2018, section 3.1).

    No task's loss grows along it to first order: d . g_i >= |d|^2. It follows short gradients, and is 0 where one of
    them is 0. Residual: max_i (|d|^2 - d . g_i) / (|g_i| min_j |g_j|), the duality gap where lengths are alike; for
    longer gradients rounding of the order |d| |g_i| is unavoidable. float32 reaches about 1e-6, but up to 1e-2 where
    lengths differ a millionfold and more gradients than dimensions depend on each other: NaN (see `reported`).

    Args:
      gradients: float [T, P], the flattened gradient of each task's loss.
      present: bool [T]: the others count as if they were not there.
      tolerance: see `reported`.

    Returns:
      float32 [P] (float64 for float64), and the metrics of `reported`.
    """
    of = gramian(stand_ins(gradients, present))
    every = jnp.all(of.active)
    shortest = jnp.min(jnp.where(of.active, of.norms, jnp.inf))
    # In weights of unit vectors, whose products are of order 1 however the lengths differ: sum_i b_i min |g| / |g_i|
    # = 1, and the result is b'U min |g|.
    relative = jnp.where(of.active, shortest / jnp.where(of.active, of.norms, 1.0), 1.0)
    start = 1 / (len(relative) * relative)
    shrink = jnp.minimum(1.0, 1e3 / jnp.max(start))  # a start of order 1; e'start = 1 is reached from there
    b = minimize_over_weights(lambda w: (of.cosines @ w, of.cosines), start * shrink, relative)
    b = b / jnp.sum(relative * b)
    slopes = of.cosines @ b  # g_i . d / (|g_i| min |g|)
    residual = jnp.maximum(jnp.max(relative * (b @ slopes) - slopes), 0.0)
    return reported(of, jnp.where(every, shortest * b, 0.0), jnp.where(every, residual, 0.0), tolerance)


def cagrad(gradients: jax.Array, present: jax.Array, *, radius: float = 0.5, tolerance: float | None = None) -> Ruled:
    """Within `radius` |g0| of the mean gradient g0, the vector that serves the worst task best: max_d min_i d . g_i
    (CAGrad; Liu et al. 2021, section 3 and algorithm 1).

    The dual: with g_w = sum_i w_i g_i and w on the simplex, min_w g_w . g0 + radius |g0| |g_w|, and then
    d = g0 + radius |g0| g_w / |g_w|. It is not divided by 1 + radius^2, as some do; radius 0 is the mean of the
    gradients. Residual: the duality gap over |g0| max |g|; float32 reaches 1e-5 for gradients of like lengths, 2e-3
    where these differ a millionfold.

    Args:
      gradients, present, tolerance: as for `mgda`.
      radius: c in the paper, >= 0. Only below 1 do the losses still have the stationary points of their mean.

    Returns:
      As `mgda`.
    """
    if radius < 0:
        raise UserError(f"cagrad: radius = {radius} does not fit; give a number >= 0")
    of = gramian(stand_ins(gradients, present))
    products, largest = of.products()
    mean = shares(present, products.dtype)
    to_mean = products @ mean
    mean_norm = jnp.sqrt(jnp.maximum(mean @ to_mean, 0.0))
    reach = radius * mean_norm

    def judged(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The share of g_w, and the gap. Where the gradients oppose each other, g_w is about 0 and its direction
        rounding: the gap says what that costs."""
        length = jnp.sqrt(jnp.maximum(w @ products @ w, 0.0))
        share = reach / jnp.maximum(length, jnp.finfo(products.dtype).eps)
        slopes = to_mean + share * (products @ w)
        gap = w @ to_mean + reach * length - jnp.min(slopes)
        return share, jnp.maximum(gap, 0.0) / jnp.where(mean_norm > 0, mean_norm, 1.0)

    w = _at_radius(products, to_mean, reach, lambda w: judged(w)[1])
    share, gap = judged(w)
    return reported(of, (mean + share * w) * of.norms, gap, tolerance)


class Bracket(NamedTuple):
    """Ends between which a growing function passes 0, its values there, and the best weights seen with their gap."""

    low: jax.Array
    high: jax.Array
    below: jax.Array
    above: jax.Array
    w: jax.Array
    gap: jax.Array
    number: jax.Array


def _at_radius(products: jax.Array, to_mean: jax.Array, reach: jax.Array,
               gap_of: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """argmin_w to_mean . w + reach |g_w| on the simplex.

    The length has a corner at 0, so it is searched for: w(p) = argmin to_mean . w + p |g_w|^2 / 2 is the solution for
    the penalty p at which p |g_w(p)| = reach, and p |g_w(p)| grows with p. Its logarithm is found between reach, since
    |g_w| <= 1, and 1 / eps, where g_w is 0 but for rounding: by false position and by halving in turn, until the gap is
    rounding or the ends meet. The weights of the smallest gap are the result.

    Args:
      products: [T, T], K with its largest entry 1.
      to_mean: [T], K times the weights of the mean.
      reach: >= 0.
      gap_of: weights -> their duality gap.
    """
    eps, tasks = float(jnp.finfo(products.dtype).eps), len(products)
    start, ones = jnp.full(tasks, 1 / tasks, products.dtype), jnp.ones(tasks, products.dtype)

    def solve(log_penalty: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The weights, and log(p |g_w|) - log(reach)."""
        penalty = jnp.exp(log_penalty)
        size = penalty + jnp.max(jnp.abs(to_mean)) + eps  # keeps the program of order 1
        hessian, linear = products * (penalty / size), to_mean / size
        w = minimize_over_weights(lambda w: (hessian @ w + linear, hessian), start, ones)
        w = w / jnp.sum(w)
        length = jnp.sqrt(jnp.maximum(w @ products @ w, eps**2))
        return w, log_penalty + jnp.log(length) - jnp.log(jnp.maximum(reach, eps))

    def narrow(old: Bracket) -> Bracket:
        share = jnp.where(old.number % 2 == 0, jnp.clip(-old.below / (old.above - old.below), 0.01, 0.99), 0.5)
        middle = old.low + share * (old.high - old.low)
        w, value = solve(middle)
        gap, down = gap_of(w), value < 0
        return Bracket(jnp.where(down, middle, old.low), jnp.where(down, old.high, middle),
                       jnp.where(down, value, old.below), jnp.where(down, old.above, value),
                       jnp.where(gap < old.gap, w, old.w), jnp.minimum(gap, old.gap), old.number + 1)

    def go_on(now: Bracket) -> jax.Array:
        return (now.gap > 64 * eps) & (now.high - now.low > 4 * eps) & (now.number < 60)

    low, high = jnp.log(jnp.maximum(reach, eps)), jnp.full((), -jnp.log(eps), products.dtype)
    w, below = solve(low)
    tiny = jnp.asarray(eps, products.dtype)
    begun = Bracket(low, high, jnp.minimum(below, -tiny), high - low, w, gap_of(w), jnp.int32(0))
    return jax.lax.while_loop(go_on, narrow, begun).w


def upgrad(gradients: jax.Array, present: jax.Array, *, tolerance: float | None = None) -> Ruled:
    """The mean of the gradients, each first projected onto the vectors that conflict with none (UPGrad; Quinton & Rey
    2024, "Jacobian descent for multi-objective optimization", section 3).

    The projection of g_i onto {d: d . g_j >= 0 for all j} is G'v with v = argmin_{v >= e_i} v'Kv, a quadratic program
    each. The result is linear in the length of each gradient. Residual: see `_onto_dual_cone`, the largest of the
    programs; float32 reaches about 1e-5.

    Args and returns: as `mgda`.
    """
    of = gramian(gradients)
    vectors, residuals = jax.vmap(lambda u: _onto_dual_cone(of, u))(jnp.eye(len(of.norms), dtype=of.norms.dtype))
    weights = shares(present, vectors.dtype) * of.norms @ vectors
    return reported(of, weights, jnp.max(jnp.where(of.active, residuals, 0.0)), tolerance)


def dual_proj(gradients: jax.Array, present: jax.Array, *, tolerance: float | None = None) -> Ruled:
    """The mean of the gradients, projected onto the vectors that conflict with none: the closest d to it with
    d . g_i >= 0 for all i (Lopez-Paz & Ranzato 2017, GEM, section 3, with the mean in place of the new task's).

    Residual: see `_onto_dual_cone`; float32 reaches about 1e-5.

    Args and returns: as `mgda`.
    """
    of = gramian(gradients)
    largest = jnp.max(of.norms)
    vector, residual = _onto_dual_cone(of, of.norms / jnp.where(largest > 0, largest, 1.0))
    return reported(of, vector * largest / jnp.maximum(jnp.sum(present), 1), residual, tolerance)


def _onto_dual_cone(of: Gramian, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The projection of sum_i target_i u_i, u_i of length 1, onto {d: d . u_j >= 0 for all j}.

    Args:
      target: [T], >= 0, of order 1.

    Returns:
      v [T], v >= target, with sum_i v_i u_i the projection (where gradients depend on each other, v is one of many);
      the residual, the larger of the worst conflict -min_j d . u_j and the complementarity (v - target) . (d . u).
    """
    dtype = target.dtype
    # Where gradients oppose each other, v is unbounded along them; this keeps it, at a cost that the residual counts.
    ridge = 4 * jnp.finfo(dtype).eps * jnp.eye(len(target), dtype=dtype)
    hessian, linear = of.cosines + ridge, of.cosines @ jnp.where(of.active, target, 0.0)
    more = minimize_over_weights(lambda w: (hessian @ w + linear, hessian), jnp.ones_like(target))
    slopes = of.cosines @ more + linear
    more, slopes = jnp.where(of.active, more, 0.0), jnp.where(of.active, slopes, 0.0)
    residual = jnp.maximum(jnp.max(-slopes), jnp.abs(jnp.sum(more * slopes)))
    return target + more, residual
