"""What each device holds during a stage, known before the first step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from transfer_jax.core.errors import UserError
from transfer_jax.training.state import Constants, State

SPARE = 0.02  # share of a device's memory that the runtime keeps for itself


@dataclass(frozen=True)
class Plan:
    """Bytes on the fullest device, by what they are for."""

    stage: str
    mesh: Mapping[str, int]
    trainable: int
    frozen: int
    optimizer: int
    other: int  # statistics of norms, averages, what terms know of the start
    data: int
    activations: int  # all that the compiled step needs beside: activations, gradients, gathered parameters
    limit: int | None = None
    lanes: int = 1  # stages that train in parallel

    @property
    def total(self) -> int:
        return self.trainable + self.frozen + self.optimizer + self.other + self.data + self.activations

    def check(self) -> None:
        """Raises UserError, with advice, where it cannot fit."""
        if self.limit is None or self.total <= (1 - SPARE) * self.limit:
            return
        raise UserError(f"stage {self.stage!r} needs {gigabytes(self.total)} on each device, which has "
                        f"{gigabytes(self.limit)}: {self._advice()}{self._apart()}")

    def _apart(self) -> str:
        return "; or train fewer stages at once, see 'parallel'" if self.lanes > 1 else ""

    def _advice(self) -> str:
        kept = self.trainable + self.frozen + self.optimizer + self.other
        if self.data > max(kept, self.activations):
            return "the data take most; set storage='host' in its streams"
        if self.activations > kept:
            return ("activations take most; use a smaller batch_size, accumulate=2 or more, remat=True in the "
                    "backbone, precision='bfloat16', or more devices")
        return ("parameters and optimizer take most; split them with mesh=dict(data=-1, fsdp=N), freeze more, or "
                "choose an optimizer with less state")


def gigabytes(size: float) -> str:
    """Bytes in a unit that people read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"


def held(tree: Any) -> int:
    """Bytes of the arrays (or shapes with shardings) on one device; what is there twice counts once."""
    return sum(_part(leaf) for leaf in {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values())


def _part(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def make_plan(stage: str, mesh: Mapping[str, int], states: Sequence[State], constants: Sequence[Constants], feeds: Any,
              executables: Sequence[Any], limit: int | None) -> Plan:
    """The plan of a compiled stage, or of several that train in parallel; arrays may be shapes with shardings.

    executables: the one program of all, or programs that run at once.
    """
    found = [executable.memory_analysis() for executable in executables]
    other = ([(state.batch_stats, state.ema, state.sums, state.bad) for state in states],
             [known._replace(frozen={}) for known in constants])
    return Plan(stage, dict(mesh), held([state.trainable for state in states]),
                held([known.frozen for known in constants]), held([state.opt_state for state in states]), held(other),
                held(feeds), sum(int(analysis.temp_size_in_bytes) for analysis in found if analysis is not None), limit,
                len(states))


def device_limit() -> int | None:
    """Bytes that a device of this process offers; None where it does not say, as a CPU does not."""
    statistics = jax.local_devices()[0].memory_stats()
    return None if not statistics else statistics.get("bytes_limit")


def describe(plan: Plan) -> str:
    """A plan in a line."""
    parts = {"trainable parameters": plan.trainable, "frozen ones": plan.frozen, "optimizer state": plan.optimizer,
             "other state": plan.other, "data": plan.data, "activations": plan.activations}
    return f"{gigabytes(plan.total)}: " + ", ".join(f"{gigabytes(size)} {name}" for name, size in parts.items() if size)


COLUMNS = ("stage", "trainable", "frozen", "optimizer", "other", "data", "activations", "total", "share")


def plan_row(plan: Plan) -> tuple[str, ...]:
    """A plan as a row of the table with `COLUMNS`."""
    share = "–" if plan.limit is None else f"{100 * plan.total / plan.limit:.1f} %"
    sizes = (plan.trainable, plan.frozen, plan.optimizer, plan.other, plan.data, plan.activations, plan.total)
    return plan.stage, *(gigabytes(size) for size in sizes), share
