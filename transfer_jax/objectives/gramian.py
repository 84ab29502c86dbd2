"""What the rules for gradients know of them: their lengths and cosines; and how weights become one gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError

Ruled = tuple[jax.Array, dict[str, jax.Array]]


class Gramian(NamedTuple):
    """K = G G' as diag(norms) cosines diag(norms), of T gradients [T, P], float32 (float64 where they are).

    K itself is never formed from the gradients: the squares of small ones would underflow in float32.
    """

    units: jax.Array  # [T, P], the gradients at length 1; a gradient of 0 stays 0
    norms: jax.Array  # [T]
    cosines: jax.Array  # [T, T], of diagonal 1 throughout, with 0 beside it for a gradient of 0

    @property
    def active(self) -> jax.Array:
        """bool [T]: which gradients are not 0."""
        return self.norms > 0

    def products(self) -> tuple[jax.Array, jax.Array]:
        """K / max |g|^2 [T, T] and max |g| (1 where all are 0)."""
        largest = jnp.max(self.norms)
        largest = jnp.where(largest > 0, largest, 1.0)
        lengths = self.norms / largest
        return lengths[:, None] * self.cosines * lengths, largest


def stand_ins(gradients: jax.Array, present: jax.Array) -> jax.Array:
    """The gradients [T, P] with those that are absent replaced by the first present one: what they span, and its hull,
    is that of the present ones."""
    return jnp.where(present[:, None], gradients, gradients[jnp.argmax(present)])


def shares(present: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The weights [T] of the mean over the present tasks."""
    return (present / jnp.maximum(jnp.sum(present), 1)).astype(dtype)


def gramian(gradients: jax.Array) -> Gramian:
    """Lengths and cosines of gradients, float [T, P]."""
    gradients = gradients.astype(jnp.promote_types(gradients.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(gradients), axis=1, keepdims=True)
    scaled = gradients / jnp.where(largest > 0, largest, 1.0)
    lengths = jnp.linalg.norm(scaled, axis=1, keepdims=True)
    units = scaled / jnp.where(lengths > 0, lengths, 1.0)
    cosines = jnp.matmul(units, units.T, precision="highest")
    diagonal = jnp.eye(len(units), dtype=bool)
    return Gramian(units, (largest * lengths)[:, 0], jnp.where(diagonal, 1.0, (cosines + cosines.T) / 2))


def combined(units: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_i weights_i units_i: [T, P] and [T] -> [P]."""
    return jnp.matmul(weights, units, precision="highest")


def reported(of: Gramian, units: jax.Array, residual: jax.Array, tolerance: float | None) -> Ruled:
    """What a rule that solves for weights returns: its gradient and the metrics {'weights', 'combination_residual'}.

    A residual above `tolerance` is no solution: then the gradient is NaN and the residual infinite, which the training
    loop reports by name and stops at. Weights that are merely equal would hide it.

    Args:
      of: the gradients.
      units: [T], weights of the gradients at length 1.
      residual: a scalar >= 0, relative to the size of the problem: how far the solution is off.
      tolerance: None: 3e-3 in float32, 1e-7 in float64.

    Returns:
      [P], and metrics: weights [T] of the gradients themselves, 0 for one of 0.

    Raises:
      UserError: for a tolerance that is not positive.
    """
    if tolerance is None:
        tolerance = 1e-7 if units.dtype == jnp.float64 else 3e-3
    if tolerance <= 0:
        raise UserError(f"a gradient rule's tolerance = {tolerance} does not fit; give a number > 0")
    solved = residual <= tolerance
    return (jnp.where(solved, combined(of.units, units), jnp.nan),
            {"weights": of_gradients(of, units), "combination_residual": jnp.where(solved, residual, jnp.inf)})


def of_gradients(of: Gramian, units: jax.Array) -> jax.Array:
    """Weights [T] of gradients at length 1 as weights of the gradients themselves."""
    return jnp.where(of.active, units / jnp.where(of.active, of.norms, 1.0), 0.0)
