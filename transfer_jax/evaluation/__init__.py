"""Floor 2: what a model is worth, measured exactly on ragged batches."""

from transfer_jax.evaluation.calibration import calibration_metric
from transfer_jax.evaluation.metrics import (
    confusion_metric,
    error_power,
    mean_iou,
    negative_log_likelihood,
    per_class_accuracy,
    top_k,
)
from transfer_jax.tasks import TASK_METRICS
from transfer_jax.tasks.metric import mean_metric

METRICS = {
    "accuracy": mean_metric(top_k(1), "accuracy", "max", counts=True),
    "top5_accuracy": mean_metric(top_k(5), "top5_accuracy", "max", counts=True),
    "pixel_accuracy": mean_metric(top_k(1), "pixel_accuracy", "max", counts=True),
    "per_class_accuracy": confusion_metric(per_class_accuracy, {"mean_class_accuracy": "max"}),
    "confusion_matrix": confusion_metric(lambda matrix: {"confusion_matrix": matrix}),
    "mean_iou": confusion_metric(mean_iou, {"mean_iou": "max"}),
    "calibration_error": calibration_metric(),
    "cross_entropy": mean_metric(negative_log_likelihood, "cross_entropy", "min", counts=False),
    "mean_absolute_error": mean_metric(error_power(1), "mean_absolute_error", "min", counts=False),
    "mean_squared_error": mean_metric(error_power(2), "mean_squared_error", "min", counts=False),
    **TASK_METRICS,
}
