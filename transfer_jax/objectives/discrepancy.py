"""Two classifiers over one encoder that disagree where the source does not reach: MCD, SWD and MDD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.layers.gradient import reverse_gradient
from transfer_jax.objectives.adversarial import reversal_scale


def classifier_discrepancy(task_logits: jax.Array, logits: jax.Array, weights: jax.Array, *,
                           reduction: Literal["mean", "sum"] = "mean") -> jax.Array:
    """|p1 - p2|_1 / K, mean over the examples, of two classifiers on the target (MCD; Saito et al. 2018, section 3).

    The paper's three updates: (A) all groups descend on both cross-entropies on the source; (B) the two heads alone on
    both cross-entropies and on this term with `weight=-1`, so that they disagree on the target; (C) the encoder alone
    on this term, `repeats=4`. Heads that start equal have no discrepancy and no gradient: initialise them apart.

    Args:
      task_logits: float [B, K] or [B, H, W, K], of the head of the `task`, p1.
      logits: of the same shape, of the `head`, p2.
      weights: float [B].
      reduction: 'mean' over the classes, or 'sum', which is K times that.
    """
    if task_logits.shape != logits.shape:
        raise UserError(f"classifier_discrepancy: the heads give {task_logits.shape} and {logits.shape}; give both as "
                        f"many outputs")
    if reduction not in ("mean", "sum"):
        raise UserError(f"classifier_discrepancy: reduction = {reduction!r} does not fit; use 'mean' or 'sum'")
    first, second = (jax.nn.softmax(z.astype(jnp.float32)) for z in (task_logits, logits))
    total = weighted_mean(jnp.sum(jnp.abs(first - second), axis=-1), weights)
    return total if reduction == "sum" else total / logits.shape[-1]


def sliced_discrepancy(task_logits: jax.Array, logits: jax.Array, key: jax.Array, *,
                       projections: int = 128) -> jax.Array:
    """The sliced Wasserstein distance, of order two and squared, of two classifiers' answers on the target (SWD; Lee,
    Batra, Baig & Ulbricht 2019).

    Probabilities are projected on `projections` directions, drawn uniformly in every step; of each the sorted values of
    both heads are compared: mean over examples and directions of their squared difference. Unlike
    `classifier_discrepancy`, in whose place it stands, it compares the batch's distributions and not example by
    example.

    Args:
      task_logits: float [B, K], of the head of the `task`.
      logits: of the same shape, of the `head`.
      key: a typed random key.
    """
    if task_logits.shape != logits.shape or logits.ndim != 2:
        raise UserError(f"sliced_discrepancy: the heads give {task_logits.shape} and {logits.shape}; give both as many "
                        f"outputs, one vector per example")
    if projections < 1:
        raise UserError(f"sliced_discrepancy: projections = {projections} does not fit; give a number >= 1")
    directions = jax.random.normal(key, (logits.shape[-1], projections))
    directions /= jnp.linalg.norm(directions, axis=0)
    first, second = (jnp.sort(jax.nn.softmax(z.astype(jnp.float32)) @ directions, axis=0)
                     for z in (task_logits, logits))
    return jnp.mean(jnp.square(first - second))


def margin_disparity(source_features: jax.Array, source_task_logits: jax.Array, target_features: jax.Array,
                     target_task_logits: jax.Array, apply_head: Callable[[jax.Array], jax.Array],
                     progress: jax.Array, *, margin: float = 4.0, gamma: float = 10.0, max_scale: float = 0.1,
                     schedule: Literal["ganin", "constant"] = "ganin") -> tuple[jax.Array, dict[str, jax.Array]]:
    """margin E_s[-log q_y] + E_t[-log(1 - q_y)], y = argmax of the classifier, q of the adversary (MDD; Zhang, Liu,
    Long & Jordan 2019, section 4).

    The adversary, a second classifier behind a gradient reversal, descends: it agrees with the classifier on the source
    and contradicts it on the target; what lies below the features receives the gradient times minus the reversal scale
    and makes that impossible. The classifier's choice y has no gradient. log(1 - q_y) is the difference of two
    logarithms of sums of exponentials, finite at every score.

    Args:
      source_features, target_features: float [Bs, D], [Bt, D].
      source_task_logits, target_task_logits: float [Bs, K], [Bt, K], of the classifier; K >= 2.
      apply_head: array [B, D] -> the adversary's scores [B, K].
      progress, gamma, schedule: of the reversal scale, as in `domain_adversarial`.
      margin: exp of the margin; gamma in the paper, which takes 2 to 4.
      max_scale: the paper's eta.

    Returns:
      The loss, and {'source_agreement', 'target_agreement', 'reversal_scale'}: how often both choose the same class.
    """
    scale = reversal_scale(progress, gamma=gamma, max_scale=max_scale, schedule=schedule)
    scores = apply_head(reverse_gradient(jnp.concatenate([source_features, target_features]), scale))
    choices = jnp.argmax(jnp.concatenate([source_task_logits, target_task_logits]), axis=-1)
    classes = source_task_logits.shape[-1]
    if scores.ndim != 2 or scores.shape != (len(choices), classes) or classes < 2:
        raise UserError(f"margin_disparity needs an adversary with the outputs of the classifier, at least 2, for one "
                        f"vector per example, got {scores.shape} beside {source_task_logits.shape}")
    logs = jax.nn.log_softmax(scores.astype(jnp.float32))
    chosen = jax.nn.one_hot(choices, classes, dtype=bool)
    agree = -jnp.sum(jnp.where(chosen, logs, 0.0), axis=-1)
    contradict = -jax.nn.logsumexp(jnp.where(chosen, -jnp.inf, logs), axis=-1)
    count = len(source_features)
    same = (jnp.argmax(scores, axis=-1) == choices).astype(jnp.float32)
    metrics = {"source_agreement": jnp.mean(same[:count]), "target_agreement": jnp.mean(same[count:])}
    return margin * jnp.mean(agree[:count]) + jnp.mean(contradict[count:]), {**metrics, "reversal_scale": scale}
