"""The one training loop: chunks of steps between the points at which the host has something to do.

The order at every such point is fixed: check for non-finite values, log, evaluate, measure anew, save. So a checkpoint
of step n holds everything that happened up to n, and a resumed run repeats nothing and misses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core import processes
from transfer_jax.core.errors import UserError
from transfer_jax.core.mesh import own_slots, place_batch
from transfer_jax.training.choice import STEPS, steps_of
from transfer_jax.training.interruption import Interrupted, StopRequest
from transfer_jax.training.state import Constants, State
from transfer_jax.training.step import Program, compile_chunk, turns_name

SECONDS_PER_DISPATCH = 0.4


class NotFinite(UserError):
    """A metric became NaN or infinite."""


@dataclass(frozen=True)
class Cadence:
    """Every how many steps the host logs, evaluates and saves (0: at the end only), and measures statistics anew (0:
    never)."""

    log: int
    evaluate: int
    save: int
    measure: int = 0


@dataclass(frozen=True)
class Hooks:
    """What the host does at its points. All take the number of steps done and the state."""

    log: Callable[[int, dict[str, np.ndarray]], None]
    evaluate: Callable[[int, State], None]
    save: Callable[[int, State], None]
    advance: Callable[[int, float], None]  # (steps since the last call, mean loss)
    compiled: Callable[[Any, State, Constants, Any], None]  # (program, its first arguments), before it runs
    measure: Callable[[int, State], Constants] | None = None  # constants with what was measured anew


@dataclass
class Feeds:
    """Data of a stage: placed on the device once, or fetched from the host step by step."""

    program: Program
    on_device: Mapping[str, Any]
    start: int
    turns: Mapping[str, np.ndarray] = field(default_factory=dict)  # see `HostStream.host_batches`
    _iterators: dict[str, Iterator[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = dict.fromkeys(stream for update in self.program.updates for stream in update.fed)
        absent = {name: self.program.streams[name] for name in names if name not in self.on_device}
        self._iterators = {name: stream.host_batches(self.start, own_slots(self.program.mesh, stream.spec.batch_size),
                                                     self.turns.get(name))
                           for name, stream in absent.items()}

    def dispatches(self, step: int, count: int) -> list[tuple[int, int]]:
        """(first step, number of steps) of the programs that run `count` steps: one, or one for every batch."""
        return [(number, 1) for number in range(step, step + count)] if self._iterators else [(step, count)]

    def next(self) -> dict[str, Any]:
        fetched = {name: place_batch(self.program.mesh, next(iterator), self.program.streams[name].spec.batch_size)
                   for name, iterator in self._iterators.items()}
        return {**self.on_device, **fetched}

    def close(self) -> None:
        for iterator in self._iterators.values():
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


def train(program: Program, state: State, constants: Constants, feeds: Mapping[str, Any], seeds: Any, start: int,
          names: list[str], cadence: Cadence, hooks: Hooks, stop: StopRequest, steps_per_dispatch: int = 0) -> State:
    """Runs steps `start` ... `program.total_steps` and returns the last state.

    Args:
      feeds: stream -> data on the device; streams that are absent come from the host.
      seeds: see `train_step`, with a member axis.
      names: names of the metrics in `State.sums`.
      steps_per_dispatch: after how many steps the host looks in; 0 chooses it by the clock; it never changes a result.

    Raises:
      NotFinite: a metric became NaN or infinite; nothing is saved then.
      Interrupted: a signal asked for it; the state was saved first.
    """
    turns = {name: seeds[turns_name(name)] for name in program.streams if turns_name(name) in seeds}
    source = Feeds(program, feeds, start, turns)
    step, members = start, state.bad.shape[0]
    pace = _Pace(steps_per_dispatch)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    chunks: dict[frozenset[str], Callable] = {}
    try:
        while step < program.total_steps:
            active = program.partition.active(step)
            count = min(_next_point(step, program, cadence) - step, pace.steps)
            for first, steps in source.dispatches(step, count):
                given = (state, constants, source.next(), seeds, jnp.int32(first), jnp.int32(steps))
                if active not in chunks:
                    chunks[active] = compile_chunk(program, members, active, shardings).lower(*given).compile()
                    hooks.compiled(chunks[active], *given[:3])
                state = chunks[active](*given)
            step += count
            _check_finite(state, names, seeds["data"])
            asked = pace.look_in(count, stop.signal)
            hooks.advance(count, _mean_loss(state, names, step, program.log_every))
            constants = _at_point(step, state, constants, program, names, cadence, hooks)
            if asked and step < program.total_steps:
                if not _falls_on(step, cadence.save):
                    hooks.save(step, state)
                raise Interrupted(asked)
    finally:
        source.close()
    return state


def _at_point(step: int, state: State, constants: Constants, program: Program, names: list[str], cadence: Cadence,
              hooks: Hooks) -> Constants:
    last = step == program.total_steps
    if _falls_on(step, cadence.log) or last:
        hooks.log(step, _window_means(state, names, step, cadence.log))
    if _falls_on(step, cadence.evaluate) and not last:
        hooks.evaluate(step, state)
    if _falls_on(step, cadence.measure) and not last:
        constants = hooks.measure(step, state)
    if _falls_on(step, cadence.save) and not last:
        hooks.save(step, state)
    return constants


def _falls_on(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _next_point(step: int, program: Program, cadence: Cadence) -> int:
    points = [step - step % every + every for every in
              (cadence.log, cadence.evaluate, cadence.save, cadence.measure) if every]
    points += [boundary for boundary in program.partition.boundaries() if boundary > step]
    return min([*points, program.total_steps])


def _window_means(state: State, names: list[str], step: int, every: int) -> dict[str, np.ndarray]:
    """Means over the steps since the last log point: metric -> float32 [S]. Those of a term that had nothing to say in
    some steps are means over the others; without any it is left out, and NaN for a seed that has none."""
    sums = dict(zip(names, np.asarray(state.sums).T, strict=True))
    steps = np.full(state.bad.shape[0], (step - 1) % every + 1, np.float32)
    counts = {name: sums.get(steps_of(name), steps) for name in names if not name.endswith(STEPS)}
    with np.errstate(invalid="ignore"):
        return {name: sums[name] / count for name, count in counts.items() if count.any()}


def _mean_loss(state: State, names: list[str], step: int, every: int) -> float:
    return float(_window_means(state, names, step, every)["loss"].mean())


def _check_finite(state: State, names: list[str], seeds: Any) -> None:
    bad = np.asarray(state.bad)
    if (bad[:, 0] < 0).all():
        return
    member = int(np.argmax(bad[:, 0] >= 0))
    step, term = bad[member]
    raise NotFinite(f"the metric {names[term]!r} became NaN or infinite at step {step + 1} (seed "
                    f"{int(seeds[member])}); training stopped, the last checkpoint before it is kept; try a smaller "
                    f"lr or set clip_norm")


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
