"""Streaming metrics: sums that add up over batches, devices and hosts, and a last division on the host.

A state is a small tree of int32 and float32 arrays to which every batch adds. States may be added to each other in any
order (`psum`, `tree.map(add)`), carried through loops and vmapped over members. Rows of weight 0 never count.

`update` reads the head's outputs and two entries of the batch: `label`, the labels of the task, and `weight` (absent:
1 each). Class metrics take outputs [B, K] with labels [B], maps [B, H, W, K] with labels [B, H, W], and single logits
([B], [B, 1] or [B, H, W, 1]), which stand for the two classes 0 and 1. Pixels labelled outside 0..K-1 (void) do not
count; a whole example labelled so counts as wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError

State = dict[str, Any]
Result = dict[str, Any]
Batch = Mapping[str, jax.Array]

_LIMB = 15


@dataclass(frozen=True)
class Metric:
    """A metric as three pure functions.

    Attributes:
      empty: number of classes -> the state of no example at all.
      measure: (outputs, batch) -> the state of this batch alone; traced.
      compute: state of one member -> float64 or int64 numpy results by name: scalars, [K] vectors with NaN for classes
        without examples, matrices. A scalar over no example is NaN.
      better: the scalar results by which runs may be compared, each 'max' or 'min'.
    """

    empty: Callable[[int], State]
    measure: Callable[[jax.Array, Batch], State]
    compute: Callable[[State], Result]
    better: Mapping[str, str] = field(default_factory=dict)

    def init(self, num_classes: int) -> State:
        """The state of no example: int32 and float32 zeros."""
        return self.empty(num_classes)

    def update(self, state: State, outputs: jax.Array, batch: Batch) -> State:
        """`state` with the examples of `batch` added."""
        return jax.tree.map(operator.add, state, self.measure(outputs, batch))


def accumulate(total: State | None, state: State) -> State:
    """Adds a device state to a host total in int64 and float64, so that long evaluations lose nothing.

    Call it once per dispatch, with `None` the first time, and restart the device state from `init`. The result is a
    tree of numpy arrays that `compute` takes.
    """
    wide = jax.tree.map(lambda x: np.asarray(x).astype(np.int64 if np.asarray(x).dtype.kind == "i" else np.float64),
                        state)
    return wide if total is None else jax.tree.map(np.add, total, wide)


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
    counted = _spread(_present(labels, batch), labels.shape)
    if labels.ndim > 1:
        counted &= (labels >= 0) & (labels < classes)
    return Scored(outputs.astype(jnp.float32).reshape(-1, classes), labels.astype(jnp.int32).reshape(-1),
                  counted.reshape(-1))


def split_count(count: jax.Array) -> State:
    """A non-negative int32 count in two limbs, count = 2^15 high + low, whose sums stay exact.

    Pixels of a long evaluation exceed int32; the limbs hold up to 65,536 batches of fewer than 2^31 pixels each.
    """
    return {"low": count & (2**_LIMB - 1), "high": count >> _LIMB}


def joined_count(limbs: State) -> np.ndarray:
    """The int64 count of summed limbs."""
    return (np.asarray(limbs["high"]).astype(np.int64) << _LIMB) + np.asarray(limbs["low"]).astype(np.int64)


def empty_count(*shape: int) -> State:
    """The limbs of zero counts."""
    return split_count(jnp.zeros(shape, jnp.int32))


def ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Elementwise float64 quotient; NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)


def mean_metric(measure: Callable[[jax.Array, Batch], State], name: str, better: str, *, counts: bool) -> Metric:
    """A metric whose state is {'sum', 'count'} and whose result is their quotient.

    Args:
      measure: (outputs, batch) -> {'sum': limbs or float32 scalar, 'count': limbs}.
      name: name of the result.
      better: 'max' or 'min'.
      counts: whether the sum is a count in limbs.
    """

    def empty(num_classes: int) -> State:
        del num_classes
        return {"sum": empty_count() if counts else jnp.zeros((), jnp.float32), "count": empty_count()}

    def compute(state: State) -> Result:
        total = joined_count(state["sum"]) if counts else state["sum"]
        return {name: float(ratio(total, joined_count(state["count"])))}

    return Metric(empty, measure, compute, {name: better})


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
        return {"sum": _count(counted & sound & (rank < k)), "count": _count(counted)}

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
    return {"per_class_accuracy": recall, "mean_class_accuracy": _mean_of_known(recall)}


def mean_iou(matrix: np.ndarray) -> Result:
    """Intersection over union by class and its mean; classes in neither truth nor prediction are left out (NaN)."""
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    iou = ratio(np.diag(matrix), union)
    return {"per_class_iou": iou, "mean_iou": _mean_of_known(iou)}


def negative_log_likelihood(outputs: jax.Array, batch: Batch) -> State:
    """Measures -log p of the true class, in nats, without smoothing or class weights."""
    scores, labels, counted = scored(outputs, batch)
    classes = scores.shape[-1]
    own = jnp.take_along_axis(jax.nn.log_softmax(scores), jnp.clip(labels, 0, classes - 1)[:, None], axis=-1)[:, 0]
    losses = jnp.where((labels >= 0) & (labels < classes), -own, jnp.inf)
    return {"sum": jnp.sum(jnp.where(counted, losses, 0.0)), "count": _count(counted)}


def error_power(power: int) -> Callable[[jax.Array, Batch], State]:
    """Measures |output - label|^power, mean over the outputs of an example."""

    def measure(outputs: jax.Array, batch: Batch) -> State:
        labels = batch["label"]
        if outputs.size != labels.size or outputs.shape[0] != labels.shape[0]:
            raise UserError(f"error metrics need one output per label, got {outputs.shape} for {labels.shape}; "
                            f"check the task's head and label")
        size = len(labels)
        errors = jnp.abs(outputs.astype(jnp.float32).reshape(size, -1) - labels.astype(jnp.float32).reshape(size, -1))
        counted = _present(labels, batch)
        return {"sum": jnp.sum(jnp.where(counted, jnp.mean(errors**power, axis=-1), 0.0)), "count": _count(counted)}

    return measure


def _present(labels: jax.Array, batch: Batch) -> jax.Array:
    return batch["weight"] > 0 if "weight" in batch else jnp.ones(labels.shape[0], bool)


def _spread(flags: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(flags.reshape(flags.shape + (1,) * (len(shape) - 1)), shape)


def _count(flags: jax.Array) -> State:
    return split_count(jnp.sum(flags, dtype=jnp.int32))


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
