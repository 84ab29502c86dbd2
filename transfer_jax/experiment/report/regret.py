"""What an advisor's choice costs: the accuracy of the best recipe that was tried less that of the advised one.

`python -m transfer_jax.advise --run DIR@stage --stream NAME` leaves `DIR/advice/NAME.json`. The recipes that the run
tried on that stream are the stages that learn from it and carry the tag `recipe`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report import statistics
from transfer_jax.experiment.report.collect import Result, Run, read_json
from transfer_jax.experiment.report.pivot import Pivot, x_value
from transfer_jax.experiment.report.tables import Table


@dataclasses.dataclass(frozen=True)
class Advised:
    """One training stream, the recipes tried on it, and what was advised.

    Attributes:
        x, evaluated: the column of the report, and the stream that was scored.
        tried: name of the row -> accuracy of each seed [S].
        chosen: name of the row that was advised, of each seed.
        by_rule: the same before any recipe was tried (see `advise --verify`).
    """

    x: Any
    evaluated: str
    tried: Mapping[str, np.ndarray]
    chosen: tuple[str, ...]
    by_rule: tuple[str, ...]

    def best(self, lower: bool = False) -> str:
        """The row with the best mean: chosen after the fact, so that regret is rather too large than too small."""
        return (min if lower else max)(self.tried, key=lambda row: self.tried[row].mean())

    def regret(self, rows: Sequence[str], lower: bool = False) -> np.ndarray:
        """[S]: what the choice of `rows`, one of each seed, falls short of the best row."""
        got = np.array([self.tried[row][place] for place, row in enumerate(rows)])
        return (self.tried[self.best(lower)] - got) * (-1 if lower else 1)


def read_advice(run: Run, table: Pivot) -> list[Advised]:
    """All advice beside the files of the run, in the order of its stages; empty without any."""
    found = [read_json(path, dict) for path in sorted((run.path / "advice").glob("*.json"))]
    stages = run.config["stages"].values() if found else ()
    order = list(dict.fromkeys(stream for stage in stages for stream in learnt_from(stage)))
    strange = [advice["stream"] for advice in found if advice["stream"] not in order]
    if strange:
        raise UserError(f"{run.path / 'advice'} holds advice for {strange[0]!r}, from which no stage of the run "
                        f"learns; remove it")
    return [_advised(run, table, advice) for advice in sorted(found, key=lambda advice: order.index(advice["stream"]))]


def learnt_from(stage: Mapping[str, Any]) -> list[str]:
    """Streams of the supervised terms of a stage of `config.json`."""
    terms = (stage.get("objective") or {}).get("terms") or {}
    return [term["stream"] for term in terms.values() if term.get("stream")]


def _advised(run: Run, table: Pivot, advice: Mapping[str, Any]) -> Advised:
    results = [result for result in run.results if result.selection == "last" and result.tags.get("recipe")
               and advice["stream"] in learnt_from(run.config["stages"][result.stage])
               and table.layout.metric in result.metrics and result.stream in table.layout.streams]
    by_recipe = {result.tags["recipe"]: result for result in results}
    recipes = [one["recipe"] for one in advice["advice"].values()]
    first = [one.get("candidates", [one["recipe"]])[0] for one in advice["advice"].values()]
    strange = [recipe for recipe in (*recipes, *first) if recipe not in by_recipe]
    if strange:
        raise UserError(f"{strange[0]} was advised for {advice['stream']}, but {run.path} has not tried it; add it to "
                        f"the recipes of the config")
    names = {recipe: _row(table, result) for recipe, result in by_recipe.items()}
    if len(recipes) != len(results[0].metrics[table.layout.metric]):
        raise UserError(f"the advice for {advice['stream']} is for {len(recipes)} seeds, but {run.path} has others; "
                        f"give it again")
    return Advised(x_value(results[0].tags, table.layout.x), results[0].stream,
                   {names[recipe]: result.metrics[table.layout.metric] for recipe, result in by_recipe.items()},
                   tuple(names[recipe] for recipe in recipes), tuple(names[recipe] for recipe in first))


def _row(table: Pivot, result: Result) -> str:
    return next(row.name for row in table.rows for cell in row.cells.values() if cell.result is result)


def chosen_cells(advice: Sequence[Advised], evaluated: str) -> dict[str, list[Any]]:
    """Row -> columns for which it was advised to any seed, among those scored on this stream."""
    found: dict[str, list[Any]] = {}
    for one in advice:
        for row in dict.fromkeys(one.chosen) if one.evaluated == evaluated else ():
            found.setdefault(row, []).append(one.x)
    return found


def with_choices(table: Table, advice: Sequence[Advised], evaluated: str) -> Table:
    """The table of scores on a stream with a column that tells for what each row was advised."""
    def cell(row: str) -> str:
        counts = {one.x: Counter(one.chosen)[row] for one in advice if one.evaluated == evaluated}
        return "; ".join(f"{x} ({count} of {len(advice[0].chosen)} seeds)" if count < len(advice[0].chosen) else str(x)
                         for x, count in counts.items() if count)

    rows = [[*row, cell(row[0])] for row in table.rows]
    return dataclasses.replace(table, columns=[*table.columns, "advised for"], rows=rows)


def regret_table(advice: Sequence[Advised], lower: bool = False) -> Table:
    """Regret of the advisor (where it tried recipes, before and after), and of taking each recipe always; a column a
    situation, and their mean."""
    always = [row for row in advice[0].tried if all(row in one.tried for one in advice)]
    tried = any(one.chosen != one.by_rule for one in advice)
    choices = {"the advisor" + ", by its rule alone" * tried: [one.by_rule for one in advice],
               **({"the advisor, after trying": [one.chosen for one in advice]} if tried else {}),
               **{f"always {row}": [(row,) * len(one.chosen) for one in advice] for row in always}}
    values = {name: np.stack([one.regret(rows, lower) for one, rows in zip(advice, chosen, strict=True)])
              for name, chosen in choices.items()}
    rows = [[name, *(statistics.text(statistics.summarize(part)) for part in (*found, found.mean(0)))]
            for name, found in values.items()]
    best = ", ".join(f"{one.x}: {one.best(lower)}" for one in advice)
    return Table(["choice", *(str(one.x) for one in advice), "mean"], rows,
                 "regret: what the choice falls short of the best recipe", _least(values), [
                     "Mean ± half width of the 95 % interval over the seeds of the difference seed by seed. The best "
                     f"recipe is the one with the best mean ({best}), known only after the fact."])


def _least(values: Mapping[str, np.ndarray]) -> set[tuple[int, int]]:
    """Positions of the smallest means."""
    means = np.array([[*found.mean(1), found.mean()] for found in values.values()])
    return {(int(i), int(j) + 1) for i, j in np.argwhere(means == means.min(0))}
