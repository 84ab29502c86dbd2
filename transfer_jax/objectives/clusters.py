"""Learning from classes that the model itself gave to the examples of an unlabelled stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.objectives.supervised import cross_entropy


def cluster_cross_entropy(logits: jax.Array, weights: jax.Array, examples: jax.Array, cluster_labels: jax.Array, *,
                          label_smoothing: float = 0.0) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy toward the classes of the nearest centroids (SHOT; Liang et al. 2020, eq. 7 without its weight).

    Set the stage's `measure_every` to find the classes anew, in the paper once per epoch.

    Args:
      logits: float [B, K].
      weights: float [B].
      examples: int [B], the numbers of the examples in their stream.
      cluster_labels: int [n]: see `objectives/statistics.py`.
      label_smoothing: as in `cross_entropy`.

    Returns:
      The loss, and {'agreement'}: the share of examples whose prediction is that class.
    """
    labels = cluster_labels[examples]
    agreement = jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
    return cross_entropy(logits, labels, None, weights, label_smoothing=label_smoothing), {"agreement": agreement}
