"""Multi-label classification: any number of several classes an example, each a question of its own.

Labels are int32 [B, K]: 1 or 0, and -1 where it is not known, which counts nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import ClassNames, TaskKind
from transfer_jax.tasks.metric import (
    Batch,
    Collected,
    Metric,
    Result,
    State,
    count_of,
    empty_count,
    joined_count,
    mean_of_known,
    present,
    ratio,
    split_count,
)


def one_per_tag(class_names: ClassNames) -> int:
    """As many outputs as classes; one is enough."""
    if not class_names:
        raise UserError("the multi-label task knows no classes: its stream shows no 'labels'; set targets=('labels',) "
                        "in the stream, of data that have them")
    return len(class_names)


def predict_tags(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logits [B, K] -> prediction int32 [B, K] (1 from a probability of one half), probabilities float32 [B, K]."""
    probabilities = jax.nn.sigmoid(outputs.astype(jnp.float32))
    return {"prediction": (probabilities >= 0.5).astype(jnp.int32), "probabilities": probabilities}


def multi_label_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array, *,
                              positive_weights: float | Sequence[float] = 1.0) -> jax.Array:
    """Sigmoid cross-entropy, -[v_k t log s(z) + (1 - t) log(1 - s(z))], mean over all known labels of the batch.

    Args:
      logits: float z [B, K].
      labels: t [B, K], 0, 1 or -1.
      weights: float [B].
      positive_weights: v, of the labels that are 1: one number, or one for each class.
    """
    _check(logits, labels)
    positive = np.broadcast_to(np.asarray(positive_weights, np.float32), np.shape(positive_weights) or (1,))
    if positive.shape not in ((1,), logits.shape[1:]) or (positive < 0).any():
        raise UserError(f"positive_weights = {positive_weights} does not fit: give one number >= 0, or one for each of "
                        f"{logits.shape[-1]} classes")
    losses = _cross_entropies(logits, labels, positive)
    known = labels >= 0
    return weighted_mean(jnp.where(known, losses, 0.0), weights, known.astype(jnp.float32))


def _cross_entropies(logits: jax.Array, labels: jax.Array, positive: np.ndarray | float = 1.0) -> jax.Array:
    logits = logits.astype(jnp.float32)
    return jnp.where(labels > 0, positive * jax.nn.softplus(-logits), jax.nn.softplus(logits))


def mean_cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """float32 [B], over the known labels of an example; 0 where there is none."""
    known = labels >= 0
    return jnp.where(known, _cross_entropies(outputs, labels), 0.0).sum(-1) / jnp.maximum(known.sum(-1), 1)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """sum_n (R_n - R_(n-1)) P_n over the distinct scores, falling; NaN without a positive.

    Args:
      scores: [n]. truth: bool [n].
    """
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # equal scores stand or fall together
    recall = hits[ends] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits[ends] / (ends + 1)))


def _rows(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    _check(outputs, batch["label"])
    return {"scores": outputs.astype(jnp.float32), "labels": batch["label"]}


def _precisions(rows: Mapping[str, np.ndarray]) -> Result:
    found = np.array([average_precision(scores[labels >= 0], labels[labels >= 0] > 0)
                      for scores, labels in zip(rows["scores"].T, rows["labels"].T, strict=True)])
    return {"macro_average_precision": mean_of_known(found), "per_class_average_precision": found}


def _counts(outputs: jax.Array, batch: Batch) -> State:
    labels = batch["label"]
    _check(outputs, labels)
    here = present(labels, batch)
    known = (labels >= 0) & here[:, None]
    answered, true = predict_tags(outputs)["prediction"] > 0, labels > 0
    asked = known.any(-1)

    def total(flags: jax.Array) -> State:
        return split_count(jnp.sum(flags & known, 0, dtype=jnp.int32))

    return {"hit": total(answered & true), "answered": total(answered), "true": total(true), "asked": count_of(asked),
            "exact": count_of(asked & ((answered == true) | ~known).all(-1))}


def _scores(state: State) -> Result:
    hit, answered, true, asked, exact = (joined_count(state[key]) for key in
                                         ("hit", "answered", "true", "asked", "exact"))
    each = ratio(2 * hit, answered + true)
    return {"micro_f1": float(ratio(2 * hit.sum(), (answered + true).sum())), "macro_f1": mean_of_known(each),
            "exact_match": float(ratio(exact, asked)), "per_class_f1": each}


def _check(outputs: jax.Array, labels: jax.Array) -> None:
    if outputs.ndim != 2 or outputs.shape != labels.shape:
        raise UserError(f"a multi-label task needs outputs and labels [batch, classes], got {outputs.shape} and "
                        f"{labels.shape}; check the task's head and label")


# Means over classes leave out those without a positive (and for F1 without an answer), whose score is NaN.
AVERAGE_PRECISION = Collected(_rows, _precisions, {"macro_average_precision": "max"})
TAG_F1 = Metric(lambda outputs: {**{key: empty_count(outputs) for key in ("hit", "answered", "true")},
                                 "asked": empty_count(), "exact": empty_count()},
                _counts, _scores, {"micro_f1": "max", "macro_f1": "max", "exact_match": "max"})

MULTI_LABEL = TaskKind(
    label="labels", loss=Component(kind="multi_label_cross_entropy"), outputs=one_per_tag, predict=predict_tags,
    metrics=("macro_average_precision", "multi_label_f1"),
    terms={"multi_label_cross_entropy": multi_label_cross_entropy},
    measures={"macro_average_precision": AVERAGE_PRECISION, "multi_label_f1": TAG_F1}, error=mean_cross_entropy,
    names="tag_names", answers="tags")
