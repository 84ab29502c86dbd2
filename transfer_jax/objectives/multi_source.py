"""Several labelled sources and one unlabelled target (MDAN)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.layers.gradient import reverse_gradient
from transfer_jax.objectives.adversarial import reversal_scale
from transfer_jax.objectives.generalization import check_domains, domain_means, domain_members, domain_risks


def multi_source_adversarial(source_features: jax.Array, source_task_logits: jax.Array, source_labels: jax.Array,
                             source_weights: jax.Array, source_domains: jax.Array, target_features: jax.Array,
                             apply_head: Callable[[jax.Array], jax.Array], progress: jax.Array, *, count: int,
                             sharpness: float | None = 10.0, mu: float = 0.01, gamma: float = 10.0,
                             max_scale: float = 1.0, schedule: Literal["ganin", "constant"] = "ganin",
                             ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """log(sum_i exp(s (R_i + mu D_i))) / s over the sources i, or the largest of them (MDAN, soft and hard; Zhao et al.
    2018).

    R_i is the mean cross-entropy of the task in source i, D_i that of a classifier which tells source i from the
    target, behind a gradient reversal: sources that are learnt badly, or are easily told from the target, count most.
    In the place of the task's loss.

    Args:
      source_features, target_features: float [Bs, D], [Bt, D].
      source_task_logits: float [Bs, K], of the head of the `task`.
      source_labels, source_domains: int [Bs]; domains are 0 to count - 1, as a stream of kind 'merge' numbers them.
      source_weights: float [Bs]. A source without weight in the batch counts for nothing.
      apply_head: array [B, D] -> [B, count], the logit of column i positive for source i, negative for the target.
      progress, gamma, max_scale, schedule: of the reversal scale, as in `domain_adversarial`.
      count: number of sources.
      sharpness: s, gamma in the paper; None: the largest alone.
      mu: of the domains' losses beside the task's.

    Returns:
      The loss, and {'worst_risk', 'domain_loss', 'reversal_scale'}: the largest R_i, the mean D_i.

    Raises:
      UserError: sources without domains, or a head without one output for each.
    """
    check_domains("multi_source_adversarial", source_task_logits, source_labels, source_domains, count)
    if sharpness is not None and sharpness <= 0:
        raise UserError(f"multi_source_adversarial: sharpness = {sharpness} does not fit; give a number above 0, or "
                        f"None for the largest alone")
    scale = reversal_scale(progress, gamma=gamma, max_scale=max_scale, schedule=schedule)
    scores = apply_head(reverse_gradient(jnp.concatenate([source_features, target_features]), scale))
    if scores.shape != (len(source_features) + len(target_features), count):
        raise UserError(f"multi_source_adversarial needs a head with one output for each of {count} sources, and one "
                        f"vector per example, got {scores.shape}; set outputs={count}")
    scores = scores.astype(jnp.float32)
    risks, present = domain_risks(source_task_logits, source_labels, source_weights, source_domains, count)
    own = jnp.take_along_axis(scores[:len(source_features)], source_domains[:, None], axis=1)[:, 0]
    of_sources, _ = domain_means(jax.nn.softplus(-own), domain_members(source_domains, source_weights, count))
    apart = (of_sources + jnp.mean(jax.nn.softplus(scores[len(source_features):]), axis=0)) / 2
    totals = jnp.where(present | ~jnp.any(present), risks + mu * apart, -jnp.inf)  # finite without any weight too
    if sharpness is None:
        loss = jnp.max(totals)
    else:
        loss = jax.nn.logsumexp(sharpness * totals) / sharpness
    told = jnp.sum(jnp.where(present, apart, 0)) / jnp.maximum(jnp.sum(present), 1)
    return loss, {"worst_risk": jnp.max(jnp.where(present, risks, -jnp.inf)), "domain_loss": told,
                  "reversal_scale": scale}
