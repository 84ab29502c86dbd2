"""What a kind of task is, and what several kinds have in common. Each kind is one file of this room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.tasks.metric import Collected, Metric

ClassNames = tuple[str, ...]


@dataclass(frozen=True)
class TaskKind:
    """A kind of task: its defaults, its functions, and the losses and metrics that it brings along.

    Attributes:
      label: key of the labels in the batch.
      loss: the default term of the objective.
      metrics: names of the default metrics.
      outputs: class names -> number of outputs of the head.
      predict: outputs of the head, and options that a task may set as `limits` -> `prediction` and, of a kind that
        chooses among classes, `confidence` and `probabilities`.
      has_classes: whether the task needs class names.
      terms: losses by name, as functions of `logits`, `labels`, `weights`; `objectives.TERMS` lists them with the rest.
      measures: metrics by name; `evaluation.METRICS` lists them with the rest.
      error: (outputs, labels, and options that a task may set as `limits`) -> float32 [B], by which the worst examples
        are found; None: minus the log-probability of the label, where the predictions have probabilities.
      target: the labels of a batch -> what the task learns of them, in training and evaluation; None: they themselves.
      reads: entries of the batch that its metrics read beside the labels, where they are there; `std`, by which the
        stream divided the pixels of its images, always is.
      unlabelled: whether it learns from what every stream shows, labels or none.
      names: the attribute of a stream that holds the names of the classes.
      answers: what answers are, where a report draws them beside the truth (an entry of `report.mistakes.DRAWINGS`);
        '': one class or number an example, or nothing that can be drawn.
    """

    label: str
    loss: Component
    metrics: tuple[str, ...]
    outputs: Callable[[ClassNames], int]
    predict: Callable[..., dict[str, jax.Array]]
    has_classes: bool = True
    terms: Mapping[str, Callable] = field(default_factory=dict)
    measures: Mapping[str, Metric | Collected] = field(default_factory=dict)
    error: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    target: Callable[[jax.Array], jax.Array] | None = None
    reads: tuple[str, ...] = ()
    unlabelled: bool = False
    names: str = "class_names"
    answers: str = ""

    def targets(self, labels: jax.Array) -> jax.Array:
        """What the task learns of the labels of a batch."""
        return labels if self.target is None else self.target(labels)


def predict_classes(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logits [..., K] -> prediction int32 [...], confidence float32 [...], probabilities float32 [..., K]."""
    probabilities = jax.nn.softmax(outputs.astype(jnp.float32))
    return {"prediction": jnp.argmax(outputs, axis=-1).astype(jnp.int32),
            "confidence": jnp.max(probabilities, axis=-1), "probabilities": probabilities}


def one_per_class(class_names: ClassNames) -> int:
    """As many outputs as classes.

    Raises:
      UserError: for fewer than two classes.
    """
    if len(class_names) < 2:
        raise UserError(f"the task needs at least 2 classes, its data has {len(class_names)} "
                        f"({', '.join(class_names) or 'none'}); use another split or kind of task")
    return len(class_names)


def one_number(class_names: ClassNames) -> int:
    """One output; a task that predicts more says so in `outputs`."""
    del class_names
    return 1


def predict_numbers(outputs: jax.Array) -> dict[str, jax.Array]:
    """Outputs [B, ...] -> prediction float32 [B, ...]; squared error gives no confidence."""
    return {"prediction": outputs.astype(jnp.float32)}


def mean_square_of_errors(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Outputs and labels of one size [B, ...] -> float32 [B], the mean square of their difference."""
    size = labels.shape[0]
    difference = outputs.astype(jnp.float32).reshape(size, -1) - labels.astype(jnp.float32).reshape(size, -1)
    return jnp.mean(difference**2, axis=-1)
