"""Means over a batch in which every example has a weight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def weighted_mean(values: jax.Array, weights: jax.Array, masses: jax.Array | None = None) -> jax.Array:
    """sum_i w_i values_i / sum_i w_i masses_i: a float32 scalar, 0 where the divisor is 0.

    Args:
      values: float [B, ...], one value per example or per pixel.
      weights: float [B], the weight of each example; values of weight 0 are left out even when they are NaN.
      masses: float of the shape of `values`: what each value counts for in the divisor; None: 1 each.
    """
    weights = jnp.broadcast_to(_trailing(weights.astype(jnp.float32), values.ndim), values.shape)
    divisor = jnp.sum(weights if masses is None else weights * masses)
    total = jnp.sum(jnp.where(weights > 0, weights * values, 0.0))
    return jnp.where(divisor > 0, total / jnp.where(divisor > 0, divisor, 1.0), 0.0)


def scaled_by_mass(values: Any, mass: jax.Array, total: jax.Array, parts: int) -> Any:
    """Values over labelled examples of one of `parts` micro-batches, scaled so that their mean over the micro-batches
    is the value over all labelled examples: a micro-batch has more of them than another. 0 where there is none."""
    share = 1.0 if parts == 1 else parts * mass / jnp.where(total > 0, total, 1.0)
    return jax.tree.map(lambda value: jnp.where(mass > 0, value * share, 0.0), values)


def _trailing(weights: jax.Array, ndim: int) -> jax.Array:
    return weights.reshape(weights.shape + (1,) * (ndim - weights.ndim))
