"""The learning-rate range test (Smith 2017, section 3.3): a stage whose rate grows until its loss does."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec, StageSpec
from transfer_jax.experiment.stage_run import StageRun
from transfer_jax.params.partition import GroupSpec
from transfer_jax.training.interruption import StopRequest
from transfer_jax.training.lane import Cadence, Hooks, Lane, NotFinite
from transfer_jax.training.loop import train
from transfer_jax.training.progress import Progress
from transfer_jax.training.writers import MetricWriter

SMOOTHING = 0.9
DIVERGED = 4.0  # times the lowest smoothed loss


@dataclass
class RangeTest:
    """`rates` [N] of the stage (those of groups keep their ratios to it) and the `losses` [N, S] of their steps."""

    rates: list[float] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)

    @property
    def smoothed(self) -> np.ndarray:
        """Exponential mean of the seeds' mean loss without the bias of its start, [N]."""
        mean, found = 0.0, []
        for number, loss in enumerate(np.mean(self.losses, axis=1), 1):
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            found.append(mean / (1 - SMOOTHING ** number))
        return np.asarray(found)

    @property
    def diverged(self) -> bool:
        smoothed = self.smoothed
        return bool(smoothed[-1] > DIVERGED * smoothed.min())

    @property
    def suggestions(self) -> dict[str, float]:
        """`steepest`: where the smoothed loss falls fastest with the logarithm of the rate; `tenth`: a tenth of the
        rate of its lowest point. Both are places to start from, not optima.

        Raises:
          UserError: if the loss rose or stopped before there is anything to see.
        """
        if len(self.rates) < 3:
            raise UserError("the loss diverged within the first steps of the range test; start from a lower rate "
                            "(--low)")
        smoothed = self.smoothed
        slopes = np.gradient(smoothed, np.log(self.rates))
        lowest = int(np.argmin(smoothed))
        return {"steepest": self.rates[int(np.argmin(slopes[:max(lowest, 1)]))], "tenth": self.rates[lowest] / 10}


class _Diverged(Exception):
    """Ends the training loop of a range test."""


def range_test(spec: ExperimentSpec, stage: str, low: float, high: float, steps: int,
               workdir: Path | None = None) -> RangeTest:
    """Trains `stage` for at most `steps` steps while its rate grows from `low` to `high` by one factor a step.

    Everything happens in a temporary folder. Stages that it starts from are taken from `workdir`, which is only read,
    or else trained there first.
    """
    if stage not in spec.stages:
        raise unknown("stage", stage, spec.stages, "the config")
    if not 0 < low < high or steps < 3:
        raise UserError(f"a range test from {low:g} to {high:g} in {steps} steps makes no sense; give 0 < --low < "
                        f"--high and at least 3 steps")
    if not spec.stages[stage].objective.ordered:
        raise UserError(f"stage {stage!r} trains nothing; choose one with an objective")
    with tempfile.TemporaryDirectory() as place:
        needed = _needed(spec, stage)
        if needed and workdir is None:
            workdir = Path(place) / "before"
            alone = {"stages": {name: spec.stages[name] for name in needed}, "parallel": ()}
            Runner(spec.model_copy(update=alone), workdir, quiet=True).run()
        only = _rising(spec, stage, low, high, steps, workdir)
        alone = {"stages": {stage: only}, "parallel": (), "log_every": 1, "export": None}
        return _measured(Runner(spec.model_copy(update=alone), Path(place) / "test", quiet=True), stage)


def _needed(spec: ExperimentSpec, stage: str) -> list[str]:
    """The stages that must be done before, in order."""
    needed: set[str] = set()
    waiting = list(_sources(spec, stage))
    while waiting:
        name = waiting.pop()
        if name in spec.stages and name not in needed:
            needed.add(name)
            waiting += _sources(spec, name)
    return [name for name in spec.stages if name in needed]


def _sources(spec: ExperimentSpec, stage: str) -> dict[str, float]:
    """Where a stage starts, 'previous' by its name -> weight."""
    names = list(spec.stages)
    before = names[names.index(stage) - 1] if stage != names[0] else "fresh"
    return {before if init == "previous" else init: weight for init, weight in spec.stages[stage].sources.items()}


def _rising(spec: ExperimentSpec, name: str, low: float, high: float, steps: int, workdir: Path | None) -> StageSpec:
    """The stage with a rising rate, on its own: what it starts from is a checkpoint."""
    stage = spec.stages[name]
    init = {f"checkpoint:{workdir}@{source}" if source in spec.stages else source: weight
            for source, weight in _sources(spec, name).items()}
    rising = Component(kind="exponential", start=low / high)
    groups: Mapping[str, GroupSpec] = {group: own.model_copy(update={
        "lr": None if own.lr is None else own.lr * high / stage.lr, "schedule": None, "warmup_steps": 0})
        for group, own in stage.groups.items()}
    return stage.model_copy(update={
        "init": init if len(init) > 1 else next(iter(init)), "lr": high, "schedule": rising, "warmup_steps": 0,
        "groups": groups, "steps": steps, "epochs": None, "examples": None, "best": None, "ema": None, "embed": ()})


def _measured(runner: Runner, stage: str) -> RangeTest:
    result = RangeTest()
    with (MetricWriter(runner.workdir.path) as writer, StopRequest() as stop,
          Progress(1, enabled=False) as progress):
        run = StageRun(runner, stage, None, writer, progress)
        begun = run.begin()
        run.measure(begun.measuring, begun.state)
        schedule = run.spec.lr * np.exp(np.log(run.spec.schedule.arguments["start"])
                                        * (1 - np.arange(run.spec.steps) / run.spec.steps))

        def log(step: int, means: Mapping[str, Any]) -> None:
            result.rates.append(float(schedule[step - 1]))
            result.losses.append(np.asarray(means["loss"], np.float64))
            if result.diverged:
                raise _Diverged

        hooks = Hooks(log=log, evaluate=_nothing, save=_nothing, advance=_nothing)
        lane = Lane(stage, run.ready.program, *run.ready.placed(begun.state, run.constants), begun.feeds, begun.seeds,
                    begun.names, Cadence(1, 0, 0), hooks)
        try:
            train([lane], stop, steps_per_dispatch=1)
        except (_Diverged, NotFinite):
            pass  # the end that a range test looks for
    return result


def _nothing(*arguments: Any) -> None:
    del arguments
