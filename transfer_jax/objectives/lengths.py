"""Euclidean lengths whose derivative exists everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def length(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """sqrt(sum x^2) over `axis` (None: all), float32; its derivative at 0, where there is none, is 0."""
    squared = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axis)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def example_lengths(x: jax.Array) -> jax.Array:
    """[B, ...] -> float32 [B]: the length of every example over all of its axes."""
    return length(x, tuple(range(1, x.ndim)))
