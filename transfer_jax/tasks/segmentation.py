"""Semantic segmentation: one of several classes a pixel."""

from transfer_jax.core.spec import Component
from transfer_jax.tasks.boundaries import BOUNDARY_F1
from transfer_jax.tasks.kind import TaskKind, one_per_class, predict_classes

SEGMENTATION = TaskKind(
    label="mask", loss=Component(kind="segmentation_cross_entropy"), outputs=one_per_class, predict=predict_classes,
    metrics=("mean_iou", "pixel_accuracy", "cross_entropy", "per_class_accuracy", "confusion_matrix"),
    measures={"boundary_f1": BOUNDARY_F1}, answers="masks")
