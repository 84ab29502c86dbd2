"""Streaming metrics: sums that add up over batches, devices and hosts, and a last division on the host.

A state is a small tree of int32 and float32 arrays to which every batch adds. States may be added to each other in any
order (`psum`, `tree.map(add)`), carried through loops and vmapped over members. Rows of weight 0 never count. What no
sum can hold (rankings over a whole data set) is `Collected`.

`update` reads the head's outputs and two entries of the batch: `label`, the labels of the task, and `weight` (absent:
1 each).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


@dataclass(frozen=True)
class Collected:
    """A metric over all examples at once, such as one of rankings: rows are kept, and measured on the host.

    Attributes:
      rows: (outputs, batch with the task's `prediction`) -> arrays [B, ...] by name, what is kept of each example;
        traced.
      compute: the rows of one member as numpy arrays [n, ...], padding dropped, in the order of the stream -> results
        as those of `Metric.compute`.
      better: as in `Metric`.
    """

    rows: Callable[[jax.Array, Batch], dict[str, jax.Array]]
    compute: Callable[[Mapping[str, np.ndarray]], Result]
    better: Mapping[str, str] = field(default_factory=dict)


def accumulate(total: State | None, state: State) -> State:
    """Adds a device state to a host total in int64 and float64, so that long evaluations lose nothing.

    Call it once per dispatch, with `None` the first time, and restart the device state from `init`. The result is a
    tree of numpy arrays that `compute` takes.
    """
    wide = jax.tree.map(lambda x: np.asarray(x).astype(np.int64 if np.asarray(x).dtype.kind == "i" else np.float64),
                        state)
    return wide if total is None else jax.tree.map(np.add, total, wide)


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


def present(labels: jax.Array, batch: Batch) -> jax.Array:
    """bool [B]: the examples that count, which are not padding."""
    return batch["weight"] > 0 if "weight" in batch else jnp.ones(labels.shape[0], bool)


def spread(flags: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Flags [B] of examples as those of their pixels, `shape` [B, ...]."""
    return jnp.broadcast_to(flags.reshape(flags.shape + (1,) * (len(shape) - 1)), shape)


def count_of(flags: jax.Array) -> State:
    """How many flags are set, in limbs."""
    return split_count(jnp.sum(flags, dtype=jnp.int32))


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the entries that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
