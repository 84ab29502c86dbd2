"""Terms that play the features against a classifier of domains, by a reversed gradient or in turns."""

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
    features = reverse_gradient(jnp.concatenate([source_features, target_features]), scale)
    loss, metrics = two_domain_loss("domain_adversarial", features, len(source_features), apply_head)
    return loss, {**metrics, "reversal_scale": scale}


def domain_critic(source_features: jax.Array, target_features: jax.Array,
                  apply_head: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of a domain classifier that leaves the features alone (Goodfellow et al. 2014, eq. 1).

    The critic's half of methods that take turns; `confusion` is the encoder's. Both domains go through the head in
    one batch; each counts for one half.

    Args:
      source_features, target_features: float [Bs, D], [Bt, D] or maps [B, H, W, C]; constants for the gradient.
      apply_head: array -> one logit per row (or pixel), positive for the source.

    Returns:
      The loss (log 2 for a critic that cannot tell), and {'domain_accuracy'}.
    """
    features = jax.lax.stop_gradient(jnp.concatenate([source_features, target_features]))
    return two_domain_loss("domain_critic", features, len(source_features), apply_head)


def domain_critic_to_start(source_start_features: jax.Array, target_features: jax.Array,
                           apply_head: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`domain_critic` with the source as the encoder of the stage's start sees it (ADDA; Tzeng et al. 2017, eq. 9).

    ADDA keeps the source encoder as the first stage left it and moves a copy, the target encoder: here the model's own
    encoder, with `confusion` as its loss. Give the copy a small learning rate: nothing else holds it to its classes.
    """
    features = jax.lax.stop_gradient(jnp.concatenate([source_start_features, target_features]))
    return two_domain_loss("domain_critic_to_start", features, len(source_start_features), apply_head)


def confusion(target_features: jax.Array, apply_head: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """-mean log D(target): the encoder's half, with inverted labels (ADDA; Tzeng et al. 2017, eq. 9).

    D is the probability that the critic gives to the source. Its gradient is large where the critic is right, where
    that of a reversed loss vanishes. Only the encoder descends on it: leave the critic's group out of this update.

    Args:
      target_features: float [B, D] or maps [B, H, W, C].
      apply_head: array -> one logit per row (or pixel), positive for the source.
    """
    logits = apply_head(target_features).astype(jnp.float32)
    check_one_output("confusion", target_features, logits)
    return jnp.mean(-jax.nn.log_sigmoid(logits))


def two_domain_loss(name: str, features: jax.Array, count: int, apply_head: Callable[[jax.Array], jax.Array],
                    weights: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logistic loss of a head that tells the first `count` rows (the source) from the rest, each domain one half.

    Args:
      name: of the term, for the error.
      features: [Bs + Bt, ...].
      weights: float32 [Bs + Bt, 1], what a row counts for within its domain; None: all the same.

    Returns:
      The loss, float32, and {'domain_accuracy'}, the mean of the accuracies on both domains.
    """
    logits = apply_head(features).astype(jnp.float32)
    check_one_output(name, features, logits)
    signs = jnp.where(jnp.arange(len(features)) < count, 1.0, -1.0).reshape((-1,) + (1,) * (logits.ndim - 1))
    losses, right = -jax.nn.log_sigmoid(signs * logits), jnp.where(signs > 0, logits > 0, logits <= 0)
    weights = jnp.ones_like(losses) if weights is None else jnp.broadcast_to(weights.reshape(signs.shape), losses.shape)
    halves = [jnp.sum((weights * losses)[part]) / jnp.sum(weights[part]) for part in (slice(count), slice(count, None))]
    return sum(halves) / 2, {"domain_accuracy": (jnp.mean(right[:count]) + jnp.mean(right[count:])) / 2}


def check_one_output(name: str, features: jax.Array, logits: jax.Array) -> None:
    """Raises unless the head gave one logit per row or pixel."""
    if logits.ndim == features.ndim and logits.shape[-1] != 1:
        raise UserError(f"{name} needs a head with 1 output, got {logits.shape[-1]}; set outputs=1")


def reversal_scale(progress: jax.Array, *, gamma: float, max_scale: float, schedule: str) -> jax.Array:
    """The float32 scale of the reversed gradient at `progress` in 0..1 (Ganin et al. 2016, section 5.2.2)."""
    progress = jnp.asarray(progress, jnp.float32)
    if schedule == "constant":
        return jnp.full_like(progress, max_scale)
    if schedule == "ganin":
        return max_scale * (2 / (1 + jnp.exp(-gamma * progress)) - 1)
    raise UserError(f"schedule = {schedule!r} of the reversed gradient does not fit; use 'ganin' or 'constant'")
