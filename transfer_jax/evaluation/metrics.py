"""Metrics of classes and numbers, on the streaming metrics of `tasks/metric.py`.

Class metrics take outputs [B, K] with labels [B], maps [B, H, W, K] with labels [B, H, W], and single logits ([B],
[B, 1] or [B, H, W, 1]), which stand for the two classes 0 and 1. Pixels labelled outside 0..K-1 (void) do not count; a
whole example labelled so counts as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.tasks.metric import (
    Batch,
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
    spread,
)


class Scored(NamedTuple):
    """The predictions of a batch, one row per example or pixel."""

    scores: jax.Array  # float32 [N, K], logits
    labels: jax.Array  # int32 [N]
    counted: jax.Array  # bool [N]


def scored(outputs: jax.Array, batch: Batch) -> Scored:
    """Outputs and labels in rows; see the module's description for the shapes that fit.

    Raises:
      UserError: if outputs and labels do not fit each other.
    """
    labels = batch["label"]
    if outputs.shape in (labels.shape, (*labels.shape, 1)):
        logit = outputs.reshape(labels.shape)
        outputs = jnp.stack([jnp.zeros_like(logit), logit], axis=-1)
    if outputs.shape[:-1] != labels.shape:
        raise UserError(f"class metrics need outputs [..., classes] for labels [...], got {outputs.shape} and "
                        f"{labels.shape}; check the task's head and label")
    classes = outputs.shape[-1]
    counted = spread(present(labels, batch), labels.shape)
    if labels.ndim > 1:
        counted &= (labels >= 0) & (labels < classes)
    return Scored(outputs.astype(jnp.float32).reshape(-1, classes), labels.astype(jnp.int32).reshape(-1),
                  counted.reshape(-1))


def top_k(k: int) -> Callable[[jax.Array, Batch], State]:
    """Measures how many true classes are among the k highest scores (k at most the number of classes).

    Of equal scores the lower class comes first, as with argmax, so a constant output earns no more than its due; a
    row with a NaN is wrong.
    """

    def measure(outputs: jax.Array, batch: Batch) -> State:
        scores, labels, counted = scored(outputs, batch)
        classes = scores.shape[-1]
        own = jnp.take_along_axis(scores, jnp.clip(labels, 0, classes - 1)[:, None], axis=-1)
        lower = jnp.arange(classes) < labels[:, None]
        rank = jnp.sum((scores > own) | ((scores == own) & lower), axis=-1)
        sound = (labels >= 0) & (labels < classes) & ~jnp.any(jnp.isnan(scores), axis=-1)
        return {"sum": count_of(counted & sound & (rank < k)), "count": count_of(counted)}

    return measure


def confusion(outputs: jax.Array, batch: Batch) -> State:
    """Measures the confusion matrix, counts [K, K]: rows are true classes, columns predicted ones."""
    scores, labels, counted = scored(outputs, batch)
    classes = scores.shape[-1]
    counted &= (labels >= 0) & (labels < classes)
    cells = jnp.where(counted, labels * classes + jnp.argmax(scores, axis=-1), classes**2)
    counts = jnp.zeros(classes**2 + 1, jnp.int32).at[cells].add(1)
    return {"counts": split_count(counts[:-1].reshape(classes, classes))}


def confusion_metric(compute: Callable[[np.ndarray], Result], better: Mapping[str, str] | None = None) -> Metric:
    """A metric computed from the int64 confusion matrix [K, K]."""
    return Metric(lambda classes: {"counts": empty_count(classes, classes)}, confusion,
                  lambda state: compute(joined_count(state["counts"])), better or {})


def per_class_accuracy(matrix: np.ndarray) -> Result:
    """Recall of each class, NaN where a class has no example, and its mean over the classes that have."""
    recall = ratio(np.diag(matrix), matrix.sum(axis=1))
    return {"per_class_accuracy": recall, "mean_class_accuracy": mean_of_known(recall)}


def mean_iou(matrix: np.ndarray) -> Result:
    """Intersection over union by class and its mean; classes in neither truth nor prediction are left out (NaN)."""
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    iou = ratio(np.diag(matrix), union)
    return {"per_class_iou": iou, "mean_iou": mean_of_known(iou)}


def negative_log_likelihood(outputs: jax.Array, batch: Batch) -> State:
    """Measures -log p of the true class, in nats, without smoothing or class weights."""
    scores, labels, counted = scored(outputs, batch)
    classes = scores.shape[-1]
    own = jnp.take_along_axis(jax.nn.log_softmax(scores), jnp.clip(labels, 0, classes - 1)[:, None], axis=-1)[:, 0]
    losses = jnp.where((labels >= 0) & (labels < classes), -own, jnp.inf)
    return {"sum": jnp.sum(jnp.where(counted, losses, 0.0)), "count": count_of(counted)}


def error_power(power: int) -> Callable[[jax.Array, Batch], State]:
    """Measures |output - label|^power, mean over the outputs of an example."""

    def measure(outputs: jax.Array, batch: Batch) -> State:
        labels = batch["label"]
        if outputs.size != labels.size or outputs.shape[0] != labels.shape[0]:
            raise UserError(f"error metrics need one output per label, got {outputs.shape} for {labels.shape}; "
                            f"check the task's head and label")
        size = len(labels)
        errors = jnp.abs(outputs.astype(jnp.float32).reshape(size, -1) - labels.astype(jnp.float32).reshape(size, -1))
        counted = present(labels, batch)
        return {"sum": jnp.sum(jnp.where(counted, jnp.mean(errors**power, axis=-1), 0.0)), "count": count_of(counted)}

    return measure
