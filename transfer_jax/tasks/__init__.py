"""Floor 1: tasks. A task says which head answers, against which labels, with which loss and which metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pydantic
from pydantic import Field

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, Spec, check_arguments, lookup
from transfer_jax.tasks.auto_encoding import AUTO_ENCODING
from transfer_jax.tasks.binary import BINARY
from transfer_jax.tasks.boundary_detection import BOUNDARY_DETECTION
from transfer_jax.tasks.classification import CLASSIFICATION
from transfer_jax.tasks.depth import DEPTH
from transfer_jax.tasks.detection import DETECTION
from transfer_jax.tasks.embedding import EMBEDDING
from transfer_jax.tasks.keypoints import KEYPOINTS
from transfer_jax.tasks.kind import TaskKind
from transfer_jax.tasks.metric import Collected, Metric
from transfer_jax.tasks.multi_label import MULTI_LABEL
from transfer_jax.tasks.normals import NORMALS
from transfer_jax.tasks.ordinal import ORDINAL
from transfer_jax.tasks.regression import REGRESSION
from transfer_jax.tasks.segmentation import SEGMENTATION

TASKS: dict[str, TaskKind] = {
    "classification": CLASSIFICATION,
    "segmentation": SEGMENTATION,
    "boundary_detection": BOUNDARY_DETECTION,
    "binary": BINARY,
    "multi_label": MULTI_LABEL,
    "regression": REGRESSION,
    "ordinal": ORDINAL,
    "detection": DETECTION,
    "embedding": EMBEDDING,
    "keypoints": KEYPOINTS,
    "depth": DEPTH,
    "normals": NORMALS,
    "auto_encoding": AUTO_ENCODING,
}

# What the kinds bring along, for the registries of losses and metrics.
TASK_TERMS: dict[str, Callable] = {name: term for kind in TASKS.values() for name, term in kind.terms.items()}
TASK_METRICS: dict[str, Metric | Collected] = {
    name: metric for kind in TASKS.values() for name, metric in kind.measures.items()}


class TaskSpec(Spec):
    """One task. What is left out of label, metrics and loss is filled from its kind when the spec is built.

    Attributes:
      kind: entry of `TASKS`.
      head: name of the head that answers.
      label: key of the labels in the batch.
      metrics: names of the metrics of its evaluation.
      loss: the supervised term.
      class_names_from: the stream that defines the classes; None: the first stream that the task is used on.
      limits: options of the kind's answers, such as how many boxes a detection gives.
      outputs: how many numbers a regression predicts or an embedding has; the other kinds count their classes.
    """

    kind: str
    head: str
    label: str = ""
    metrics: tuple[str, ...] = ()
    loss: Component = Component(kind="")
    class_names_from: str | None = None
    limits: dict[str, int | float] = {}
    outputs: int | None = Field(default=None, ge=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
            return values  # the fields themselves say what is wrong
        kind = lookup(TASKS, values["kind"], "kind of task", "the task's kind")
        if values.get("outputs") is not None and kind.has_classes:
            raise ValueError(f"'outputs' is for regression and embedding; a {values['kind']} task counts its classes, "
                             f"delete it")
        if isinstance(values.get("limits"), Mapping):
            check_arguments(kind.predict, values["limits"], f"'limits' of a {values['kind']} task", ("outputs",))
        given = {key: value for key, value in values.items() if value is not None}
        return {"label": kind.label, "metrics": kind.metrics, "loss": kind.loss, **given}


def head_outputs(task: TaskSpec, class_names: tuple[str, ...] = ()) -> int:
    """The number of outputs that the task's head needs for these classes.

    Raises:
      UserError: if the number of classes does not fit the kind.
    """
    return task.outputs or TASKS[task.kind].outputs(tuple(class_names))


def metric_batch(task: TaskSpec, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The entries of `batch` that metrics read: the task's labels under `label`, weights, 0 for one not known, and what
    the kind `reads` beside them.

    Raises:
      UserError: if the batch has no such labels.
    """
    if task.label not in batch:
        raise UserError(f"the task of head {task.head!r} needs the labels {task.label!r}, but the stream gives "
                        f"{', '.join(sorted(batch))}; evaluate on a labelled stream, name what it shows in its "
                        f"'targets', or set the task's 'label'")
    weights = [batch[key] for key in ("weight", f"known/{task.label}") if key in batch]
    kind = TASKS[task.kind]
    beside = {key: batch[key] for key in kind.reads if key in batch}
    return {"label": kind.targets(batch[task.label]), **({"weight": math.prod(weights)} if weights else {}), **beside}


def predict(task: TaskSpec, outputs: jax.Array) -> dict[str, jax.Array]:
    """`prediction` and, for classes, `confidence` (probability of the prediction) and `probabilities`."""
    return TASKS[task.kind].predict(outputs, **task.limits)


def example_error(task: TaskSpec, outputs: jax.Array, labels: jax.Array) -> jax.Array | None:
    """float32 [B], by which the worst examples are found; None for a kind without a measure of one example."""
    kind = TASKS[task.kind]
    if kind.error is not None:
        return kind.error(outputs, labels, **task.limits)
    probabilities = predict(task, outputs).get("probabilities")
    return None if probabilities is None else -_log_probability(probabilities, labels)


def _log_probability(probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """Log-probability of the label, one number an example (the mean over pixels for maps); what has no class is left
    out."""
    known = (labels >= 0) & (labels < probabilities.shape[-1])
    places = jnp.where(known, labels, 0)[..., None].astype(jnp.int32)
    chosen = jnp.log(jnp.maximum(jnp.take_along_axis(probabilities, places, axis=-1)[..., 0], 1e-30))
    chosen, known = (x.reshape(labels.shape[0], -1) for x in (jnp.where(known, chosen, 0.0), known))
    return chosen.sum(-1) / jnp.maximum(known.sum(-1), 1)
