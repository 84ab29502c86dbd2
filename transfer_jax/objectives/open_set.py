"""Targets with classes that the source does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.layers.gradient import reverse_gradient
from transfer_jax.objectives.adversarial import reversal_scale


def open_set_adversarial(target_features: jax.Array, target_weights: jax.Array,
                         apply_head: Callable[[jax.Array], jax.Array], progress: jax.Array, *, threshold: float = 0.5,
                         gamma: float = 10.0, max_scale: float = 1.0,
                         schedule: Literal["ganin", "constant"] = "constant",
                         ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-t log p - (1 - t) log(1 - p) with p the target's probability of the last class, 'unknown' (open set domain
    adaptation by backpropagation; Saito, Yamamoto, Ushiku & Harada 2018, eq. 3-6).

    The classifier descends: it draws a boundary at p = t. What lies below the features receives the gradient times
    minus the reversal scale, and so pushes every example to one of its sides: known or unknown. The source's labels
    are learned beside it by the same head, whose last class no source example has.

    Args:
      target_features: float [B, D], those that the head reads.
      target_weights: float [B].
      apply_head: array [B, D] -> scores [B, K + 1].
      progress, gamma, max_scale, schedule: of the reversal scale, as in `domain_adversarial`; 1 in the paper.
      threshold: t, strictly between 0 and 1.

    Returns:
      The loss, and {'unknown', 'reversal_scale'}: the share of the target that is taken for the last class.
    """
    if not 0 < threshold < 1:
        raise UserError(f"open_set_adversarial: threshold = {threshold} does not fit; give a number between 0 and 1")
    scale = reversal_scale(progress, gamma=gamma, max_scale=max_scale, schedule=schedule)
    scores = apply_head(reverse_gradient(target_features, scale)).astype(jnp.float32)
    if scores.ndim != 2 or scores.shape[-1] < 2:
        raise UserError(f"open_set_adversarial needs a head with the known classes and a last one for the rest, got "
                        f"scores {scores.shape}")
    # log p and log(1 - p) as differences of logarithms of sums: finite at every score.
    total = jax.nn.logsumexp(scores, axis=-1)
    losses = total - threshold * scores[:, -1] - (1 - threshold) * jax.nn.logsumexp(scores[:, :-1], axis=-1)
    unknown = (jnp.argmax(scores, axis=-1) == scores.shape[-1] - 1).astype(jnp.float32)
    return weighted_mean(losses, target_weights), {"unknown": weighted_mean(unknown, target_weights),
                                                   "reversal_scale": scale}
