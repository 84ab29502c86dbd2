"""Gradients of tasks become one in closed form: equal projections, equal cosines, aligned principal components."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.objectives.gramian import Gramian, Ruled, combined, gramian, reported


def imtl_g(gradients: jax.Array, *, tolerance: float | None = None) -> Ruled:
    """sum_i a_i g_i with sum a = 1 whose projections onto all gradients are equal (IMTL-G; Liu et al. 2021, "Towards
    impartial multi-task learning", section 3.1).

    With C the cosines and D the lengths, equal projections mean C D a ~ 1, so that a ~ D^-1 C^+ 1: the paper's
    inverse without a task set apart, and also where gradients are equal. Weights may be negative, and so may their sum:
    then the result points against every gradient, as in the paper's formula. Residual: max |C b - 1| for b = C^+ 1,
    which is 1 where opposed gradients have no equal projections but 0: NaN (see `reported`).

    Args:
      gradients: float [T, P], the flattened gradient of each task's loss. One of 0 takes no part.
      tolerance: see `reported`.

    Returns:
      float32 [P] (float64 for float64), and the metrics of `reported`.
    """
    of = gramian(gradients)
    b, residual = _equal_projections(of)
    total = jnp.sum(b / jnp.where(of.active, of.norms, 1.0))
    return reported(of, b / jnp.where(jnp.any(of.active), total, 1.0), residual, tolerance)


def conflict_free(gradients: jax.Array, *, tolerance: float | None = None) -> Ruled:
    """The direction of equal, positive cosines with all gradients, as long as the sum of their projections onto it
    (ConFIG; Liu, Chu & Thuerey 2025, section 3): x = U^+ 1, d = (sum_i g_i . x) x / |x|^2.

    The direction is that of `imtl_g`, up to its sign; the length is not. Residual and arguments: as there.
    """
    of = gramian(gradients)
    b, residual = _equal_projections(of)
    length = jnp.sqrt(jnp.maximum(b @ of.cosines @ b, 0.0))
    b = b / jnp.where(length > 0, length, 1.0)
    return reported(of, jnp.sum(of.units @ combined(of.units, b) * of.norms) * b, residual, tolerance)


def aligned_mtl(gradients: jax.Array) -> Ruled:
    """The sum of the gradients after their principal components are all made as long as the shortest, so that the
    system of gradients has condition number 1 (Aligned-MTL; Senushkin et al. 2023, section 4 and algorithm 1).

    K = V L V' gives the weights sqrt(l_min) V L^-1/2 V' 1, over the eigenvalues that are not rounding, l > l_max T eps.
    Some divide by T.

    Args: as `imtl_g`, without a tolerance: nothing is solved.

    Returns:
      float32 [P] (float64 for float64), and {'weights': those of the gradients [T]}.
    """
    of = gramian(gradients)
    weights = jnp.sum(alignment(of.products()[0]), axis=0)
    return combined(of.units, weights * of.norms), {"weights": weights}


def alignment(products: jax.Array) -> jax.Array:
    """B = sqrt(l_min) V L^-1/2 V' for K = V L V', floating [T, T] of order 1 -> [T, T]: the gradients BG have the
    singular value sqrt(l_min) only."""
    values, vectors = jnp.linalg.eigh(products)
    kept = values > _rounding(values)
    least = jnp.min(jnp.where(kept, values, jnp.inf))
    factors = jnp.where(kept, jnp.sqrt(jnp.where(kept, least / jnp.where(kept, values, 1.0), 0.0)), 0.0)
    return vectors * factors @ vectors.T


def _equal_projections(of: Gramian) -> tuple[jax.Array, jax.Array]:
    """b = C^+ 1 [T], 0 for gradients of 0, and max |C b - 1|."""
    ones = of.active.astype(of.cosines.dtype)
    values, vectors = jnp.linalg.eigh(of.cosines)
    kept = values > _rounding(values)
    b = vectors @ (jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0) * (vectors.T @ ones))
    return jnp.where(of.active, b, 0.0), jnp.max(jnp.abs(of.cosines @ b - ones))


def _rounding(values: jax.Array) -> jax.Array:
    return jnp.max(values) * len(values) * jnp.finfo(values.dtype).eps
