"""Terms that play the features against a classifier of domains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.layers.gradient import reverse_gradient


def domain_adversarial(source_features: jax.Array, target_features: jax.Array,
                       apply_head: Callable[[jax.Array], jax.Array], progress: jax.Array, *,
                       gamma: float = 10.0, max_scale: float = 1.0,
                       schedule: Literal["ganin", "constant"] = "ganin") -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of a domain classifier behind a gradient reversal (Ganin et al. 2016, section 4.2).

    The classifier descends on the loss; what lies below the features receives the gradient times minus the reversal
    scale max_scale (2 / (1 + exp(-gamma p)) - 1), which rises from 0 with the progress p of the stage, or a constant
    max_scale. Both domains go through the head in one batch; each counts for one half, whatever its batch size.

    Args:
      source_features, target_features: float [Bs, D], [Bt, D] or maps [B, H, W, C].
      apply_head: array -> one logit per row (or pixel), positive for the source.
      progress: float scalar 0..1, may be traced.
      gamma: steepness of the schedule.
      max_scale: largest reversal scale.
      schedule: 'ganin' or 'constant'.

    Returns:
      The loss (log 2 for a classifier that cannot tell), and {'domain_accuracy', 'reversal_scale'}.
    """
    scale = reversal_scale(progress, gamma=gamma, max_scale=max_scale, schedule=schedule)
    features = jnp.concatenate([source_features, target_features])
    logits = apply_head(reverse_gradient(features, scale)).astype(jnp.float32)
    if logits.ndim == features.ndim and logits.shape[-1] != 1:
        raise UserError(f"domain_adversarial needs a head with 1 output, got {logits.shape[-1]}; set outputs=1")
    from_source, from_target = logits[:len(source_features)], logits[len(source_features):]
    loss = (jnp.mean(-jax.nn.log_sigmoid(from_source)) + jnp.mean(-jax.nn.log_sigmoid(-from_target))) / 2
    accuracy = (jnp.mean(from_source > 0) + jnp.mean(from_target <= 0)) / 2
    return loss, {"domain_accuracy": accuracy, "reversal_scale": scale}


def reversal_scale(progress: jax.Array, *, gamma: float, max_scale: float, schedule: str) -> jax.Array:
    """The float32 scale of the reversed gradient at `progress` in 0..1 (Ganin et al. 2016, section 5.2.2)."""
    progress = jnp.asarray(progress, jnp.float32)
    if schedule == "constant":
        return jnp.full_like(progress, max_scale)
    if schedule == "ganin":
        return max_scale * (2 / (1 + jnp.exp(-gamma * progress)) - 1)
    raise UserError(f"domain_adversarial: schedule = {schedule!r} does not fit; use 'ganin' or 'constant'")
