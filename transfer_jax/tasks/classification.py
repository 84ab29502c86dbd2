"""Classification: one of several classes an example."""

from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import TaskKind, one_per_class, predict_classes

CLASSIFICATION = TaskKind(
    label="label", loss=Component(kind="cross_entropy"), outputs=one_per_class, predict=predict_classes,
    metrics=("accuracy", "top5_accuracy", "cross_entropy", "per_class_accuracy", "confusion_matrix",
             "calibration_error"))
