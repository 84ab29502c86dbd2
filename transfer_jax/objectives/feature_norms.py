"""Terms on the lengths of feature vectors (AFN: stepwise and hard)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.reduction import weighted_mean
from transfer_jax.objectives.lengths import example_lengths


def feature_norm(features: jax.Array, weights: jax.Array, *, step: float = 1.0) -> jax.Array:
    """(|f| - (|f|_0 + step))^2, mean over the examples, where |f|_0 is |f| held constant (stepwise adaptive feature
    norm, SAFN; Xu, Li, Yang & Lin 2019).

    Features that are longer transfer better. The VALUE is step^2 whatever happens; what acts is the gradient, -2 step
    f / |f| for every example. One term per domain; the paper's weight is 0.05. A feature of length 0 has no direction
    and gets no gradient.

    Args:
      features: float [B, d], or [B, ...] with every example one vector.
      weights: float [B].
      step: Delta r.
    """
    sizes = example_lengths(features)
    return weighted_mean(jnp.square(sizes - jax.lax.stop_gradient(sizes + step)), weights)


def hard_feature_norm(features: jax.Array, weights: jax.Array, *, radius: float = 25.0) -> jax.Array:
    """(mean |f| - radius)^2: the mean length of a domain is drawn to one that both share (hard adaptive feature norm,
    HAFN; Xu, Li, Yang & Lin 2019).

    One term per domain, as `feature_norm`; the paper's radius is 25 for features of length 1000, its weight 0.05. The
    radius has to be set for the features at hand, which is why the paper prefers the stepwise form.

    Args:
      features: float [B, d], or [B, ...] with every example one vector.
      weights: float [B].
      radius: R.
    """
    return jnp.square(weighted_mean(example_lengths(features), weights) - radius)
