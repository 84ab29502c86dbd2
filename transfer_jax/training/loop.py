"""The one training loop: chunks of steps between the points at which the host has something to do.

It trains one stage, or several in parallel, each a `Lane` with points of its own. The order at every point is fixed:
check for non-finite values, log, evaluate, measure anew, save. So a checkpoint of step n holds everything that happened
up to n, and a resumed run repeats nothing and misses nothing, whatever the stages beside it do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transfer_jax.core import processes
from transfer_jax.core.errors import all_of
from transfer_jax.training.chunk import compile_chunk
from transfer_jax.training.interruption import Interrupted, StopRequest
from transfer_jax.training.lane import Lane

SECONDS_PER_DISPATCH = 0.4
Compiled = Callable[[Any, Sequence[Lane]], None]


def train(lanes: Sequence[Lane], stop: StopRequest, steps_per_dispatch: int = 0, joined: bool = True,
          compiled: Compiled | None = None) -> None:
    """Runs all lanes to their last step; the states are in the lanes.

    Args:
      steps_per_dispatch: after how many steps the host looks in; 0 chooses it by the clock; it never changes a result.
      joined: one compiled program for all lanes, or one for each, dispatched at once: see `ExperimentSpec.lanes`.
      compiled: told of each program before it runs, with the lanes that it trains.

    Raises:
      NotFinite: a metric became NaN or infinite; nothing is saved then.
      Interrupted: a signal asked for it; the states were saved first.
    """
    bundles = [_Bundle(part, compiled) for part in ([lanes] if joined else [[lane] for lane in lanes])]
    pace = _Pace(steps_per_dispatch)
    try:
        while any(lane.left for lane in lanes):
            counts = _shares(lanes, pace.steps)
            for steps in _dispatches(lanes, counts):
                for bundle in bundles:
                    bundle.run(steps)
            moved = [(lane, count) for lane, count in zip(lanes, counts, strict=True) if count]
            for lane, _ in moved:
                lane.check_finite()
            asked = pace.look_in(max(counts), stop.signal)
            for lane, count in moved:
                lane.hooks.advance(count, lane.mean_loss)
            for lane, _ in moved:
                lane.at_point()
            if asked and any(lane.left for lane in lanes):
                all_of([lane.save for lane in lanes])
                raise Interrupted(asked)
    finally:
        for lane in lanes:
            lane.data.close()


def _shares(lanes: Sequence[Lane], most: int) -> list[int]:
    """Steps of every lane until the host looks in: in proportion to those it has left, so that all end together, and
    up to the first point of any; at most `most`."""
    share = min([most / max(lane.left for lane in lanes), *(lane.room / lane.left for lane in lanes if lane.left)])
    return [min(lane.room, max(1, round(share * lane.left))) if lane.left else 0 for lane in lanes]


def _dispatches(lanes: Sequence[Lane], counts: Sequence[int]) -> list[dict[str, int]]:
    """Lane -> number of steps, for each of the dispatches that run `counts` steps: a single one, or as many as batches
    come from the host."""
    pairs = list(zip(lanes, counts, strict=True))
    number = max([1, *(count for lane, count in pairs if lane.data.by_step)])

    def part(lane: Lane, count: int, turn: int) -> int:
        return int(turn < count) if lane.data.by_step else count * (turn + 1) // number - count * turn // number

    return [{lane.name: part(lane, count, turn) for lane, count in pairs} for turn in range(number)]


class _Bundle:
    """The lanes that one compiled program trains."""

    def __init__(self, lanes: Sequence[Lane], compiled: Compiled | None) -> None:
        self.lanes, self._compiled = lanes, compiled
        self._chunks: dict[tuple[frozenset[str], ...], Callable] = {}

    def run(self, steps: dict[str, int]) -> None:
        """Dispatches the next steps of every lane, numbers of them by its name."""
        lanes, counts = self.lanes, [steps[lane.name] for lane in self.lanes]
        if not any(counts):
            return
        data = tuple(lane.data.take(count) for lane, count in zip(lanes, counts, strict=True))
        given = (tuple(lane.state for lane in lanes), tuple(lane.constants for lane in lanes), data,
                 tuple(lane.seeds for lane in lanes), np.int32([lane.step for lane in lanes]), np.int32(counts))
        states = self._chunk(given)(*given)
        for lane, state, count in zip(lanes, states, counts, strict=True):
            lane.state = state
            lane.step += count

    def _chunk(self, given: tuple[Any, ...]) -> Callable:
        active = tuple(lane.active for lane in self.lanes)
        if active not in self._chunks:
            parts = [(lane.program, groups) for lane, groups in zip(self.lanes, active, strict=True)]
            members = self.lanes[0].state.bad.shape[0]
            shardings = tuple(lane.shardings for lane in self.lanes)
            self._chunks[active] = compile_chunk(parts, members, shardings).lower(*given).compile()
            if self._compiled is not None:
                self._compiled(self._chunks[active], self.lanes)
        return self._chunks[active]


class _Pace:
    """Chooses after how many steps the host looks in, so that it does so often enough for progress and signals.

    All processes choose alike: they tell each other their clocks and signals whenever they look in.
    """

    def __init__(self, fixed: int) -> None:
        self.fixed = fixed
        self.steps = fixed or 1
        self._last = time.monotonic()
        self._looks = 0

    def look_in(self, count: int, signal: int | None) -> int:
        """After `count` steps: the signal that any process has got, or 0."""
        now = time.monotonic()
        spent, self._last = now - self._last, now
        slowest, asked = processes.gathered(np.array([int(spent * 1e6), signal or 0])).max(0).tolist()
        self._looks += 1
        if not self.fixed and self._looks > 1:  # the first time holds the compilation
            wanted = count * SECONDS_PER_DISPATCH / max(slowest / 1e6, 1e-4)
            self.steps = int(min(max(1, wanted), 8 * count + 8))
        return asked
