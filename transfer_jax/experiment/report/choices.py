"""What it costs to choose a stage's parameters without target labels: the validators' choices beside last and oracle.

Read from `metrics.jsonl`: at every evaluation point of a stage with `validation` stand the metrics `validator/<name>`
of its target streams, and the scores of the evaluated streams. The labels behind those scores serve here alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer_jax.experiment.report import statistics
from transfer_jax.experiment.report.collect import Run
from transfer_jax.experiment.report.pivot import Layout
from transfer_jax.experiment.report.scores import MISSING, span
from transfer_jax.experiment.report.tables import Table
from transfer_jax.training.writers import VALIDATED

LAST, ORACLE, START = "last", "oracle", "start"
DISTANCE = f"{VALIDATED}a_distance"  # minus the distance: larger is better


@dataclasses.dataclass(frozen=True)
class Choices:
    """A stage on one target, at its T evaluation points after the start.

    Attributes:
        title: of the stage (and of the target where it has several).
        stream, metric: what was scored with labels; `lower`: whether small scores are good.
        steps: int [T].
        scores: [S, T].
        start: scores before the first step, [S]; None: not measured.
        validators: name -> [S, T], larger is better.
    """

    title: str
    stream: str
    metric: str
    lower: bool
    steps: np.ndarray
    scores: np.ndarray
    start: np.ndarray | None
    validators: Mapping[str, np.ndarray]

    @property
    def rules(self) -> list[str]:
        return [LAST, *self.validators, ORACLE]

    def points(self, rule: str) -> np.ndarray:
        """The evaluation point that a rule takes, of each seed, int [S]; the earliest of equals, as `best` has it."""
        if rule == LAST:
            return np.full(len(self.scores), len(self.steps) - 1)
        values = self.validators[rule] if rule != ORACLE else -self.scores if self.lower else self.scores
        return np.argmax(np.where(np.isnan(values), -np.inf, values), axis=1)

    def chosen(self, rule: str) -> np.ndarray:
        """The score at that point, [S]."""
        return self.scores[np.arange(len(self.scores)), self.points(rule)]

    def regret(self, rule: str) -> np.ndarray:
        """What the choice falls short of the oracle's, seed by seed, [S]; never negative."""
        return (self.chosen(ORACLE) - self.chosen(rule)) * (-1 if self.lower else 1)


def read_choices(runs: Sequence[Run], asked: Layout) -> list[Choices]:
    """All stages with validators and a labelled stream of the target's domain, in their order."""
    found = []
    for run in runs:
        for stage, target, label in _judged(run, asked):
            lines = _lines(run, stage, target)
            truths = {step: metrics[asked.metric] for step, metrics in _lines(run, stage, label).items()
                      if asked.metric in metrics}
            steps = [step for step in lines if step in truths]
            if not any(steps):
                continue
            kept = [step for step in steps if step]
            names = [name for name in lines[kept[0]] if name.startswith(VALIDATED)]
            found.append(Choices(
                _title(run, stage, target, len(runs) > 1), label, asked.metric, asked.lower, np.array(kept),
                _columns([truths[step] for step in kept]),
                np.array(truths[0], np.float64) if 0 in truths else None,
                {name.removeprefix(VALIDATED): _columns([lines[step][name] for step in kept]) for name in names}))
    return found


def validated_stages(run: Run) -> list[tuple[str, str]]:
    """(stage, target stream) of all that have validators, in order."""
    stages = run.config.get("stages") or {}
    found = []
    for stage in run.stages:
        target = ((stages.get(stage) or {}).get("validation") or {}).get("target") or ()
        found += [(stage, stream) for stream in ([target] if isinstance(target, str) else target)]
    return found


def _judged(run: Run, asked: Layout) -> list[tuple[str, str, str]]:
    """(stage, target stream, evaluated stream by whose labels the choices on the target are scored)."""
    found = []
    for stage, target in validated_stages(run):
        streams, facts = run.config["streams"], run.config["stages"][stage]
        task, domain = facts["validation"]["task"], streams[target].get("domain")
        labels = [(stream, stream if isinstance(tasks, str) else f"{stream}/{task}")
                  for stream, tasks in (facts.get("evaluate") or {}).items()
                  if task == tasks or not isinstance(tasks, str) and task in tasks]
        there = [label for stream, label in labels
                 if stream == target or domain and streams[stream].get("domain") == domain]
        there.sort(key=lambda label: label not in asked.streams)
        found += [(stage, target, there[0])] if there else []
    return found


def _lines(run: Run, stage: str, stream: str) -> dict[int, Mapping[str, Any]]:
    """Step -> metrics of the stream."""
    return {line["step"]: line["metrics"] for line in run.metrics
            if line["stage"] == stage and line["kind"] == "eval" and line["stream"] == stream}


def _columns(values: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(values, np.float64).T


def _title(run: Run, stage: str, target: str, several_runs: bool) -> str:
    several = sum(name == stage for name, _ in validated_stages(run)) > 1
    return f"{run.name + ': ' if several_runs else ''}{run.title(stage)}{f', {target}' if several else ''}"


def choice_table(choices: Choices) -> Table:
    """A row a rule of choosing: the score it leads to, what it falls short of the oracle, and the steps it takes."""
    digits = statistics.decimals([*choices.scores.ravel()])
    rows = [] if choices.start is None else [
        [START, statistics.text(statistics.summarize(choices.start), digits), MISSING, "0"]]
    for rule in choices.rules:
        steps = choices.steps[choices.points(rule)]
        rows.append([rule, statistics.text(statistics.summarize(choices.chosen(rule)), digits),
                     MISSING if rule == ORACLE else statistics.text(statistics.summarize(choices.regret(rule)), digits),
                     span(steps.tolist(), lambda step: f"{step:,}")])
    offset = len(rows) - len(choices.rules)
    regrets = {rule: [choices.regret(rule)] for rule in choices.rules if rule != ORACLE}
    return Table(["chosen by", f"{choices.metric} on {choices.stream}", "regret", "step"], rows, choices.title,
                 {(row + offset, column) for row, _ in _least(regrets) for column in (1, 2)},
                 [f"{_seeds(choices)}, {len(choices.steps)} evaluation points."])


MEANING = ("Every seed is chosen for by itself, among the evaluation points after the start (whose score is shown, but "
           "never chosen). Regret: what the choice falls short of the oracle, which looks at the very labels that are "
           "scored. Bold: the least regret of the validators.")


def regret_table(choices: Sequence[Choices]) -> Table:
    """A row a rule, a column a stage: regret; and the mean over the stages, seed by seed."""
    rules = [rule for rule in choices[0].rules if rule != ORACLE and all(rule in one.rules for one in choices)]
    regrets = {rule: [one.regret(rule) for one in choices] for rule in rules}
    columns = [one.title for one in choices]
    if len(choices) > 1 and len({len(one.scores) for one in choices}) == 1:
        columns.append("mean")
        regrets = {rule: [*found, np.mean(found, axis=0)] for rule, found in regrets.items()}
    rows = [[rule, *(statistics.text(statistics.summarize(values)) for values in found)]
            for rule, found in regrets.items()]
    return Table(["chosen by", *columns], rows, "Regret of choosing without target labels",
                 {(row, column + 1) for row, column in _least(regrets)},
                 [f"{choices[0].metric} of the oracle's choice less that of each rule. {_seeds(choices[0])}."])


def short_table(choices: Sequence[Choices], width: int) -> list[Table]:
    """For the terminal, what fits into so many columns: the one stage, or regret of all stages, or their mean."""
    if not choices:
        return []
    tables = [choice_table(choices[0]) if len(choices) == 1 else regret_table(choices)]
    if tables[0].columns[-1] == "mean":
        narrow = tables[0]
        while len(narrow.columns) > 2:
            narrow = narrow.without(1)
        tables.append(dataclasses.replace(narrow, title=f"{narrow.title}, mean of {len(choices)} stages"))
    fitting = [table for table in tables if table.width() <= width][:1]
    return [dataclasses.replace(table, notes=[*table.notes, MEANING]) for table in fitting]


def _least(regrets: Mapping[str, Sequence[np.ndarray]]) -> set[tuple[int, int]]:
    """(row, column) of the validators with the least mean regret, in each column where they are not all alike."""
    means = {row: [float(values.mean()) for values in found]
             for row, (rule, found) in enumerate(regrets.items()) if rule != LAST}
    found = set()
    for column in range(len(next(iter(means.values()), ()))):
        of_rules = {row: values[column] for row, values in means.items()}
        if min(of_rules.values()) < max(of_rules.values()):
            found |= {(row, column) for row, mean in of_rules.items() if mean == min(of_rules.values())}
    return found


def distance_table(runs: Sequence[Run]) -> Table | None:
    """A-distance of the source and each target, before and after each stage."""
    rows = []
    for run in runs:
        for stage, target in validated_stages(run):
            found = {step: metrics[DISTANCE] for step, metrics in _lines(run, stage, target).items()
                     if DISTANCE in metrics}
            if found:
                first, last = (np.array(found.get(step, [np.nan]), np.float64) for step in (0, max(found)))
                cells = [statistics.text(statistics.summarize(0 - values)) if np.isfinite(values).all() else MISSING
                         for values in (first, last)]
                rows.append([_title(run, stage, target, len(runs) > 1), *cells])
    if not rows:
        return None
    return Table(["stage", "before", "after"], rows, "A-distance of source and target", (), [
        "2 (1 - 2 error) of a linear classifier of the two domains that answers held-out examples: 0 alike, 2 told "
        "apart without error. A small distance says that domains look alike, not that classes do."])


def _seeds(choices: Choices) -> str:
    count = len(choices.scores)
    return "One seed: no interval" if count == 1 else f"Mean ± half width of the 95 % interval over {count} seeds"
