"""Stages that train in parallel: independent models in one process, each to the very bits that it reaches alone.

`ExperimentSpec.parallel` names groups of neighbouring stages, none of which starts from another. A group is one call of
the loop with a lane for each stage (`training/loop.py`). Everything else of a stage is its own: points of logging,
evaluation and saving, checkpoints, results; so a group that was stopped goes on with every stage where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from transfer_jax.core.errors import UserError, all_of, unknown
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.training.interruption import StopRequest
from transfer_jax.training.lane import Lane
from transfer_jax.training.loop import train
from transfer_jax.training.memory import describe, device_limit, make_plan
from transfer_jax.training.progress import Progress

if TYPE_CHECKING:
    from transfer_jax.experiment.assembly import Assembly
    from transfer_jax.experiment.runner import Runner
    from transfer_jax.experiment.stage_run import StageRun


def in_groups(spec: ExperimentSpec) -> list[tuple[str, ...]]:
    """All stages in order, those that train in parallel together."""
    names = list(spec.stages)
    group_of = {name: tuple(sorted(group, key=names.index)) for group in spec.parallel for name in group}
    return list(dict.fromkeys(group_of.get(name, (name,)) for name in names))


def check_parallel(spec: ExperimentSpec) -> None:
    """Raises UserError for a group that cannot train in parallel."""
    names, seen = list(spec.stages), set()
    for number, group in enumerate(spec.parallel):
        where = f"config.parallel.{number}"
        for name in group:
            if name not in spec.stages:
                raise unknown("stage", name, spec.stages, where)
            if name in seen:
                raise UserError(f"{where} names stage {name!r} for the second time; name each once")
            seen.add(name)
        places = sorted(names.index(name) for name in group)
        if places != list(range(min(places, default=0), min(places, default=0) + len(places))):
            raise UserError(f"{where}: between {names[places[0]]!r} and {names[places[-1]]!r} stand stages of no part "
                            f"in it ({', '.join(n for n in names[places[0]:places[-1]] if n not in group)}); stages "
                            f"that train in parallel stand together")
        for name in group:
            _check_independent(spec, name, group, where)


def _check_independent(spec: ExperimentSpec, name: str, group: tuple[str, ...], where: str) -> None:
    names = list(spec.stages)
    place = names.index(name)
    for init in spec.stages[name].sources:
        source = names[place - 1] if init == "previous" and place else init
        if source in group:
            asked = "the previous stage, " if init == "previous" else ""
            raise UserError(f"{where}: stage {name!r} starts from {asked}{source!r}, which trains in parallel with it; "
                            f"give it another 'init' (fresh, or a stage before both), or take it out of the group")


def train_together(runner: Runner, runs: Sequence[StageRun], progress: Progress, stop: StopRequest) -> None:
    """Trains what is left of stages, one or several in parallel, and records their results."""
    names = [run.name for run in runs]
    for run in runs:
        run.beside.update(name for name in names if name != run.name)
    shown: dict[str, float] = {}

    def told(name: str) -> Callable[[int, float], None]:
        label = "loss" if len(names) == 1 else f"{name} loss"

        def advance(count: int, loss: float) -> None:
            shown[label] = loss
            progress.advance(count, **shown)

        return advance

    try:
        lanes = [run.enter(told(run.name)) for run in runs]
        done, left = sum(lane.step for lane in lanes), sum(lane.left for lane in lanes)
        progress.start_stage(" + ".join(run.spec.title or run.name for run in runs), done + left, done, len(runs))
        for run, lane in zip(runs, lanes, strict=True):
            run.start_clock()
            if not lane.left:
                run.finish(lane.step, lane.state)
        train([lane for lane in lanes if lane.left], stop, runner.spec.steps_per_dispatch, joined(runner.assembly),
              _Planner(runner, progress, sum(lane.left > 0 for lane in lanes)))
        progress.end_stage()
    finally:  # also before a stop that was asked for: it says that all is saved
        all_of([run.checkpoints.wait for run in runs])


def joined(assembly: Assembly) -> bool:
    """Whether stages that train in parallel are one compiled program.

    A CPU runs the loops of one program one after the other, because they share its scratch memory, but programs at
    once. Several devices would have to run the collectives of both in the same order.
    """
    if assembly.spec.lanes != "auto":
        return assembly.spec.lanes == "joined"
    return jax.default_backend() != "cpu" or assembly.mesh.size > 1


class _Planner:
    """Says what every device will hold, and refuses what cannot fit, when all programs of a group are compiled."""

    def __init__(self, runner: Runner, progress: Progress, number: int) -> None:
        self.runner, self.progress, self.number = runner, progress, number
        self.programs: dict[str, tuple[Any, Sequence[Lane]]] = {}

    def __call__(self, executable: Any, lanes: Sequence[Lane]) -> None:
        self.programs[lanes[0].name] = (executable, lanes)
        together = [lane for _, part in self.programs.values() for lane in part]
        if len(together) < self.number:
            return
        name = " + ".join(lane.name for lane in together)
        plan = make_plan(name, self.runner.assembly.mesh.shape, [lane.state for lane in together],
                         [lane.constants for lane in together], [lane.data.take(0) for lane in together],
                         [program for program, _ in self.programs.values()], device_limit())
        if not self.runner.quiet:
            self.progress.message(f"{name}: each device holds {describe(plan)}")
        plan.check()
