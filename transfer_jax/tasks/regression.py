"""Regression: one or more numbers an example."""

from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import TaskKind, mean_square_of_errors, one_number, predict_numbers

REGRESSION = TaskKind(
    label="label", loss=Component(kind="squared_error"), outputs=one_number, predict=predict_numbers,
    metrics=("mean_squared_error", "mean_absolute_error"), has_classes=False, error=mean_square_of_errors)
