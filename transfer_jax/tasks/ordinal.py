"""Ordinal regression: one of several classes that have an order (grades, ages, stages of a disease)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import ClassNames, TaskKind
from transfer_jax.tasks.metric import Batch, Metric, Result, State, empty_count, joined_count, present, split_count


def one_per_threshold(class_names: ClassNames) -> int:
    """An output for each pair of neighbouring classes.

    Raises:
      UserError: for fewer than three classes, whose order would say nothing.
    """
    if len(class_names) < 3:
        raise UserError(f"an ordinal task needs at least 3 classes in their order, its data has {len(class_names)} "
                        f"({', '.join(class_names) or 'none'}); use kind 'classification' or 'binary'")
    return len(class_names) - 1


def exceedances(outputs: jax.Array) -> jax.Array:
    """Logits [B, K - 1] of P(y > k | y > k - 1) -> P(y > k), float32 [B, K - 1], which never rises with k."""
    return jnp.exp(jnp.cumsum(jax.nn.log_sigmoid(outputs.astype(jnp.float32)), -1))


def predict_rank(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logits [B, K - 1] -> prediction int32 [B], the number of thresholds that are exceeded with more than one half
    (the median of the distribution); probabilities float32 [B, K]; confidence, that of the prediction."""
    above = exceedances(outputs)
    edges = jnp.concatenate([jnp.ones_like(above[:, :1]), above, jnp.zeros_like(above[:, :1])], -1)
    probabilities = edges[:, :-1] - edges[:, 1:]
    rank = jnp.sum(above > 0.5, -1).astype(jnp.int32)
    return {"prediction": rank, "confidence": jnp.take_along_axis(probabilities, rank[:, None], -1)[:, 0],
            "probabilities": probabilities}


def conditional_ordinal(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """The loss of CORN (Shi, Cao & Raschka 2023): threshold k learns, from the examples that exceed threshold k - 1,
    whether they exceed it too; the mean over all pairs of such an example and a threshold.

    Args:
      logits: float [B, K - 1].
      labels: int [B], the number of the class in its order; beyond them the loss is NaN.
      weights: float32 [B].
    """
    thresholds = jnp.arange(logits.shape[-1])
    asked, exceeded = labels[:, None] >= thresholds, labels[:, None] > thresholds
    costs = jax.nn.softplus(jnp.where(exceeded, -1.0, 1.0) * logits.astype(jnp.float32))
    valid = (labels >= 0) & (labels <= logits.shape[-1])
    losses = jnp.where(valid[:, None], jnp.where(asked, costs, 0.0), jnp.nan)
    return weighted_mean(losses, weights, asked.astype(jnp.float32))


def _confusion(outputs: jax.Array, batch: Batch) -> State:
    """Counts of (class, prediction), [K, K] in limbs."""
    labels, classes = batch["label"], outputs.shape[-1] + 1
    if labels.ndim != 1:
        raise UserError(f"an ordinal task has one class an example, but its labels have the shape {labels.shape}; "
                        f"check the task's label")
    known = jax.nn.one_hot(labels, classes, dtype=jnp.int32) * present(labels, batch)[:, None]
    answered = jax.nn.one_hot(predict_rank(outputs)["prediction"], classes, dtype=jnp.int32)
    return split_count(known.T @ answered)


def _agreement(state: State) -> Result:
    counts = joined_count(state).astype(np.float64)
    number = counts.sum()
    if not number:
        return dict.fromkeys(("rank_accuracy", "mean_rank_error", "quadratic_kappa"), float("nan"))
    ranks = np.arange(len(counts))
    distance = np.abs(ranks[:, None] - ranks)
    chance = np.outer(counts.sum(1), counts.sum(0)) / number
    expected = (distance**2 * chance).sum()
    kappa = 1 - (distance**2 * counts).sum() / expected if expected else float("nan")
    return {"rank_accuracy": float(np.trace(counts) / number), "quadratic_kappa": float(kappa),
            "mean_rank_error": float((distance * counts).sum() / number)}


# `quadratic_kappa` is Cohen's kappa with squared distances (Cohen 1968), NaN where labels and answers are one class.
RANKS = Metric(lambda outputs: empty_count(outputs + 1, outputs + 1), _confusion, _agreement,
               {"rank_accuracy": "max", "mean_rank_error": "min", "quadratic_kappa": "max"})

ORDINAL = TaskKind(
    label="label", loss=Component(kind="conditional_ordinal"), outputs=one_per_threshold, predict=predict_rank,
    metrics=("ranks",), terms={"conditional_ordinal": conditional_ordinal}, measures={"ranks": RANKS})
