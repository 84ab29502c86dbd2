"""What a statistic of the start takes from elsewhere in the experiment: another task's data, an earlier stage's."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.objectives.wiring import Term, statistic_name
from transfer_jax.tasks import TASKS


def check_statistics(assembly: Assembly, stage: str, terms: Sequence[Term], where: str) -> None:
    """Raises UserError for a stage or stream that a statistic needs, but that is not there or does not fit."""
    for term in terms:
        for statistic in term.statistics.values():
            if statistic.after is not None:
                statistic_before(assembly.spec, stage, term)
            if statistic.calibrated_on is not None:
                _check_calibration(assembly, statistic.calibrated_on, term, f"{where}.objective.{term.name}")


def statistic_before(spec: ExperimentSpec, stage: str, term: Term) -> str:
    """The name under which the stage `after` keeps what goes on in the term's statistic: that of its term of the same
    kind, of the same name where there are several."""
    where = f"config.stages.{stage}.objective.{term.name}"
    names, (quantity, statistic) = list(spec.stages), next(iter(term.statistics.items()))
    before = names[:names.index(stage)]
    if statistic.after not in before:
        raise unknown("stage", statistic.after, before, f"{where}.after, the stages before")
    found = [name for update in spec.stages[statistic.after].objective.ordered for name, other in update.terms.items()
             if other.kind == term.kind]
    if term.name not in found and len(found) != 1:
        raise UserError(f"{where}.after: the stage {statistic.after!r} has {len(found)} terms of kind {term.kind!r} "
                        f"({', '.join(found) or 'none'}); name a stage with one, or with one called {term.name!r}")
    return statistic_name(term.name if term.name in found else found[0], quantity)


def head_task(spec: ExperimentSpec, head: str) -> str | None:
    """The classification task that the head answers, None without one."""
    return next((name for name, task in spec.tasks.items() if task.head == head and task.kind == "classification"),
                None)


def _check_calibration(assembly: Assembly, stream: str, term: Term, where: str) -> None:
    spec = assembly.spec
    if stream not in spec.streams:
        raise unknown("stream", stream, spec.streams, f"{where}.calibrated_on")
    task = head_task(spec, term.head)
    if task is None:
        raise UserError(f"{where}.calibrated_on: no classification task has the head {term.head!r}, so that nobody "
                        f"knows its labels; add the task, or give the temperature as a number")
    classes = tuple(getattr(assembly.stream(stream), TASKS["classification"].names))
    if classes != assembly.class_names(task):
        raise UserError(f"{where}.calibrated_on: the stream {stream!r} has not the classes of the task {task!r}, for "
                        f"which the head {term.head!r} was trained; name one that has")
