"""A stage on its way through the loop: where it stands, what it reads, and what the host does at its points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.mesh import own_slots, place_batch
from transfer_jax.training.choice import STEPS, steps_of
from transfer_jax.training.state import Constants, State
from transfer_jax.training.step import Program, turns_name


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
    """What the host does at its points. All but `advance` take the number of steps done, and the state or means."""

    log: Callable[[int, dict[str, np.ndarray]], None]
    evaluate: Callable[[int, State], None]
    save: Callable[[int, State], None]
    advance: Callable[[int, float], None]  # (steps since the last call, mean loss)
    measure: Callable[[int, State], Constants] | None = None  # constants with what was measured anew
    end: Callable[[int, State], None] | None = None  # after the last step


@dataclass
class Feeds:
    """Data of a stage: placed on the device once, or fetched from the host step by step."""

    program: Program
    on_device: Mapping[str, Any]
    start: int
    turns: Mapping[str, np.ndarray] = field(default_factory=dict)  # see `HostStream.host_batches`
    _iterators: dict[str, Iterator[Any]] = field(default_factory=dict)
    _fetched: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = dict.fromkeys(stream for update in self.program.updates for stream in update.fed)
        absent = {name: self.program.streams[name] for name in names if name not in self.on_device}
        self._iterators = {name: stream.host_batches(self.start, own_slots(self.program.mesh, stream.spec.batch_size),
                                                     self.turns.get(name))
                           for name, stream in absent.items()}

    @property
    def by_step(self) -> bool:
        """Whether every step needs a batch from the host, and so a dispatch of its own."""
        return bool(self._iterators)

    def take(self, steps: int) -> dict[str, Any]:
        """Data for the next steps, one where batches come from the host; for 0 steps it need only look like them."""
        if steps or not self._fetched:
            self._fetched = {
                name: place_batch(self.program.mesh, next(iterator), self.program.streams[name].spec.batch_size)
                for name, iterator in self._iterators.items()}
        return {**self.on_device, **self._fetched}

    def close(self) -> None:
        for iterator in self._iterators.values():
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


@dataclass
class Lane:
    """One stage in training; `step` of its steps are done.

    Attributes:
      feeds: stream -> data on the device; streams that are absent come from the host.
      seeds: see `train_step`, with a member axis.
      names: names of the metrics in `State.sums`.
    """

    name: str
    program: Program
    state: State
    constants: Constants
    feeds: Mapping[str, Any]
    seeds: Any
    names: list[str]
    cadence: Cadence
    hooks: Hooks
    step: int = 0

    def __post_init__(self) -> None:
        turns = {name: self.seeds[turns_name(name)] for name in self.program.streams if turns_name(name) in self.seeds}
        self.data = Feeds(self.program, self.feeds, self.step, turns)
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)

    @property
    def left(self) -> int:
        """Steps to do."""
        return self.program.total_steps - self.step

    @property
    def room(self) -> int:
        """Steps up to the next point at which the host has something to do or other groups begin to move."""
        every = (self.cadence.log, self.cadence.evaluate, self.cadence.save, self.cadence.measure)
        points = [self.step - self.step % each + each for each in every if each]
        points += [boundary for boundary in self.program.partition.boundaries() if boundary > self.step]
        return min([*points, self.program.total_steps]) - self.step

    @property
    def active(self) -> frozenset[str]:
        """Groups that move in the next step; after the end, those that moved in the last one."""
        return self.program.partition.active(min(self.step, self.program.total_steps - 1))

    @property
    def mean_loss(self) -> float:
        return float(self._means(self.program.log_every)["loss"].mean())

    def check_finite(self) -> None:
        """Raises NotFinite where a metric of a step so far was not."""
        bad = np.asarray(self.state.bad)
        if (bad[:, 0] < 0).all():
            return
        member = int(np.argmax(bad[:, 0] >= 0))
        step, term = bad[member]
        raise NotFinite(f"stage {self.name!r}: the metric {self.names[term]!r} became NaN or infinite at step "
                        f"{step + 1} (seed {int(self.seeds['data'][member])}); training stopped, the last checkpoint "
                        f"before it is kept; try a smaller lr or set clip_norm")

    def at_point(self) -> None:
        """What the host does after `step` steps, in this order: log, evaluate, measure anew, save; or end."""
        step, hooks, last = self.step, self.hooks, not self.left
        if _falls_on(step, self.cadence.log) or last:
            hooks.log(step, self._means(self.cadence.log))
        if _falls_on(step, self.cadence.evaluate) and not last:
            hooks.evaluate(step, self.state)
        if _falls_on(step, self.cadence.measure) and not last:
            self.constants = hooks.measure(step, self.state)
        if _falls_on(step, self.cadence.save) and not last:
            hooks.save(step, self.state)
        if last and hooks.end is not None:
            hooks.end(step, self.state)

    def save(self) -> None:
        """Saves the state as it stands, unless its point has done so or it has ended."""
        if self.left and not _falls_on(self.step, self.cadence.save):
            self.hooks.save(self.step, self.state)

    def _means(self, every: int) -> dict[str, np.ndarray]:
        """Means over the steps since the last log point: metric -> float32 [S]. Those of a term that had nothing to
        say in some steps are means over the others; without any it is left out, and NaN for a seed that has none."""
        sums = dict(zip(self.names, np.asarray(self.state.sums).T, strict=True))
        steps = np.full(self.state.bad.shape[0], (self.step - 1) % every + 1, np.float32)
        counts = {name: sums.get(steps_of(name), steps) for name in self.names if not name.endswith(STEPS)}
        with np.errstate(invalid="ignore"):
            return {name: sums[name] / count for name, count in counts.items() if count.any()}


def _falls_on(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
