"""Binary classification: one logit for two classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import ClassNames, TaskKind, predict_classes


def predict_bit(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logits [B, 1] or [B] -> prediction int32 [B] (1 where the logit is positive), the rest as `predict_classes`."""
    return predict_classes(two_logits(outputs))


def two_logits(outputs: jax.Array) -> jax.Array:
    """A single logit, [B, 1] or [B], as logits float32 [B, 2] of the classes 0 and 1."""
    logits = outputs.astype(jnp.float32).reshape(outputs.shape[0])
    return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


def one_for_two_classes(class_names: ClassNames) -> int:
    """One logit for two classes.

    Raises:
      UserError: unless there are exactly two classes.
    """
    if len(class_names) != 2:
        raise UserError(f"a binary task needs exactly 2 classes, its data has {len(class_names)}; choose two with "
                        f"'classes' of the stream or use kind 'classification'")
    return 1


BINARY = TaskKind(
    label="label", loss=Component(kind="binary_cross_entropy"), outputs=one_for_two_classes, predict=predict_bit,
    metrics=("accuracy", "cross_entropy", "per_class_accuracy", "confusion_matrix", "calibration_error"))
