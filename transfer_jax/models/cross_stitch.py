"""Cross-stitch units: one network for each task, which read from each other at every tap."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import unknown
from transfer_jax.core.interception import tap_edits
from transfer_jax.models.taps import Backbone, Taps

COLUMN = "columns"
AXIS = "task"
PER_COLUMN = ("params", "batch_stats", "moments")  # with a leading axis of columns; all else they share


class CrossStitch(Backbone):
    """One column (a whole backbone) for each task, mixed behind the taps `at` (Misra et al. 2016, equation 1):
    x_i <- sum_j a_ij x_j, with a learned a for each tap.

    `a` starts with 1 - (T - 1) * `other` on its diagonal and `other` beside it. All columns run as one, over stacked
    parameters `columns/...` [T, ...]. Taps: `<task>_<tap of the column>`.
    """

    column: Backbone | None = None
    tasks: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    other: float = 0.1

    resumes = False  # its columns run as one

    @property
    def tap_names(self) -> tuple[str, ...]:
        return tuple(f"{task}_{tap}" for task in self.tasks for tap in self.column.tap_names)

    @property
    def example(self) -> Any:
        return self.column.example

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """What a column reads -> taps of all columns."""
        for tap in self.at:
            if tap not in self.column.tap_names:
                raise unknown("tap", tap, self.column.tap_names, "backbone cross_stitch, at")
        count = len(self.tasks)
        start = self.other + (1 - count * self.other) * jnp.eye(count)
        mixing = {tap: self.param(f"stitch_{tap.replace('/', '_')}", lambda _: start.astype(jnp.float32))
                  for tap in self.at}
        columns = nn.vmap(type(self.column), in_axes=(None, None), axis_size=count, axis_name=AXIS,
                          variable_axes={**dict.fromkeys(PER_COLUMN, 0), "live": None, "stochastic": None},
                          split_rngs={"params": True, "dropout": True})
        options = {field.name: getattr(self.column, field.name) for field in dataclasses.fields(self.column)
                   if field.name not in ("parent", "name")}
        with tap_edits({tap: functools.partial(_stitched, matrix) for tap, matrix in mixing.items()}):
            found = columns(**options, name=COLUMN)(x, train)
        return {f"{task}_{tap}": value[i] for i, task in enumerate(self.tasks) for tap, value in found.items()}


def _stitched(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """The mixture of this tap of all columns for the column that runs here."""
    everyone = jax.lax.all_gather(x, AXIS)
    mine = matrix[jax.lax.axis_index(AXIS)].astype(x.dtype)
    return jnp.tensordot(mine, everyone, 1)
