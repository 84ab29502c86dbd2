"""What the kinds of task have in common: labels, loss, metrics, and how outputs become predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component

ClassNames = tuple[str, ...]


@dataclass(frozen=True)
class TaskKind:
    """The defaults and the two functions of a kind of task.

    Attributes:
      label: key of the labels in the batch.
      loss: the default term of the objective.
      metrics: names of the default metrics.
      outputs: class names -> number of outputs of the head.
      predict: outputs of the head -> `prediction` and, except for regression, `confidence` and `probabilities`.
      has_classes: whether the task needs class names.
    """

    label: str
    loss: Component
    metrics: tuple[str, ...]
    outputs: Callable[[ClassNames], int]
    predict: Callable[[jax.Array], dict[str, jax.Array]]
    has_classes: bool = True


def predict_classes(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logits [..., K] -> prediction int32 [...], confidence float32 [...], probabilities float32 [..., K]."""
    probabilities = jax.nn.softmax(outputs.astype(jnp.float32))
    return {"prediction": jnp.argmax(outputs, axis=-1).astype(jnp.int32),
            "confidence": jnp.max(probabilities, axis=-1), "probabilities": probabilities}


def predict_bit(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logits [B, 1] or [B] -> prediction int32 [B] (1 where the logit is positive), the rest as `predict_classes`."""
    return predict_classes(two_logits(outputs))


def two_logits(outputs: jax.Array) -> jax.Array:
    """A single logit, [B, 1] or [B], as logits float32 [B, 2] of the classes 0 and 1."""
    logits = outputs.astype(jnp.float32).reshape(outputs.shape[0])
    return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


def predict_numbers(outputs: jax.Array) -> dict[str, jax.Array]:
    """Outputs [B, D] -> prediction float32 [B, D]; squared error gives no confidence."""
    return {"prediction": outputs.astype(jnp.float32)}


def one_per_class(class_names: ClassNames) -> int:
    """As many outputs as classes.

    Raises:
      UserError: for fewer than two classes.
    """
    if len(class_names) < 2:
        raise UserError(f"the task needs at least 2 classes, its data has {len(class_names)} "
                        f"({', '.join(class_names) or 'none'}); use another split or kind of task")
    return len(class_names)


def one_for_two_classes(class_names: ClassNames) -> int:
    """One logit for two classes.

    Raises:
      UserError: unless there are exactly two classes.
    """
    if len(class_names) != 2:
        raise UserError(f"a binary task needs exactly 2 classes, its data has {len(class_names)}; choose two with "
                        f"'classes' of the stream or use kind 'classification'")
    return 1


def one_number(class_names: ClassNames) -> int:
    """One output; a task that predicts more says so in `outputs`."""
    del class_names
    return 1


CLASSIFICATION = TaskKind(
    label="label", loss=Component(kind="cross_entropy"), outputs=one_per_class, predict=predict_classes,
    metrics=("accuracy", "top5_accuracy", "cross_entropy", "per_class_accuracy", "confusion_matrix",
             "calibration_error"))
SEGMENTATION = TaskKind(
    label="mask", loss=Component(kind="segmentation_cross_entropy"), outputs=one_per_class, predict=predict_classes,
    metrics=("mean_iou", "pixel_accuracy", "cross_entropy", "per_class_accuracy", "confusion_matrix"))
BINARY = TaskKind(
    label="label", loss=Component(kind="binary_cross_entropy"), outputs=one_for_two_classes, predict=predict_bit,
    metrics=("accuracy", "cross_entropy", "per_class_accuracy", "confusion_matrix", "calibration_error"))
REGRESSION = TaskKind(
    label="label", loss=Component(kind="squared_error"), outputs=one_number, predict=predict_numbers,
    metrics=("mean_squared_error", "mean_absolute_error"), has_classes=False)
