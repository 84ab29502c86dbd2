"""Arranges results as the reader thinks of them: one row per method, one column per setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from transfer_jax.experiment.report.collect import Result, Run
from transfer_jax.experiment.report.statistics import lower_is_better

SELECTIONS = ("last", "best", "oracle")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a report is arranged, from `config["report"]` of the first run with defaults for what it leaves out.

    What was asked for but never measured is replaced, and said so in `notes`: a report is made when the training is
    over, too late to refuse it.
    """

    metric: str
    streams: Sequence[str]
    row: str | None  # tag whose values name the rows; None: titles of stages
    x: str | None  # tag whose values are the columns and the abscissa
    reference: str | None  # the row that differences refer to
    title: str = ""
    notes: Sequence[str] = ()

    @property
    def lower(self) -> bool:
        return lower_is_better(self.metric)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Scores of one row under one setting."""

    result: Result
    values: np.ndarray  # [S]


@dataclasses.dataclass
class Row:
    """One method of one run: `cells[(stream, x, selection)]`, and the stages that it took."""

    run: str
    name: str
    cells: dict[tuple[str, Any, str], Cell]
    stages: list[str]


@dataclasses.dataclass(frozen=True)
class Pivot:
    layout: Layout
    rows: Sequence[Row]
    xs: Sequence[Any]  # in ascending order; None (no such tag) first
    selections: Sequence[str]
    several_runs: bool
    covered: Sequence[str] = ()  # titles of stages whose scores a later stage of the same row and x took the place of

    def label(self, row: Row) -> str:
        return f"{row.run}: {row.name}" if self.several_runs else row.name

    def reference_row(self, run: str) -> Row | None:
        return next((row for row in self.rows if row.run == run and row.name == self.layout.reference), None)


def layout(runs: Sequence[Run]) -> Layout:
    """The arrangement that the config of the first run asks for, as far as the results of the runs allow."""
    asked = dict(runs[0].config.get("report") or {})
    results = [result for run in runs for result in run.results]
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    streams = list(dict.fromkeys(result.stream for result in results))
    tags = {tag for result in results for tag in result.tags}
    notes = []
    metric = asked.get("metric") or "accuracy"
    if metrics and metric not in metrics:
        instead = next((name for name in metrics if not lower_is_better(name)), metrics[0])
        notes.append(f"The metric {metric!r} was not measured; shown is {instead!r}.")
        metric = instead
    wanted = [stream for stream in asked.get("streams") or streams if stream in streams]
    missing = [stream for stream in asked.get("streams") or () if stream not in streams]
    if missing:
        notes.append(f"No scores on {', '.join(missing)}.")
    row, x = (tag if tag in tags else None for tag in (asked.get("row") or "method", asked.get("x")))
    names = dict.fromkeys(_row_name(run, result, row) or "" for run in runs for result in run.results)
    alone = next((name for name in names if "scratch" in name.lower() or "alone" in name.lower()), None)
    return Layout(metric, wanted or streams, row, x, asked.get("reference") or alone, str(asked.get("title") or ""),
                  tuple(notes))


def pivot(runs: Sequence[Run], asked: Layout) -> Pivot:
    """Rows in order of appearance. Two stages with one tag (a probe, then fine-tuning): the later one is scored."""
    rows: dict[tuple[str, str], Row] = {}
    covered: dict[str, None] = {}
    for run in runs:
        order = {stage: i for i, stage in enumerate(run.stages)}
        for result in sorted(run.results, key=lambda r: order.get(r.stage, len(order))):  # noqa: B023
            name = _row_name(run, result, asked.row)
            if name is None or result.stream not in asked.streams or asked.metric not in result.metrics:
                continue
            row = rows.setdefault((run.name, name), Row(run.name, name, {}, []))
            key = (result.stream, x_value(result.tags, asked.x), result.selection)
            if key in row.cells:
                covered[run.title(row.cells[key].result.stage)] = None
            row.cells[key] = Cell(result, result.metrics[asked.metric])
        for row in rows.values():
            if row.run == run.name:
                row.stages = _stages_of(run, row, asked)
    keys = [key for row in rows.values() for key in row.cells]
    xs = sorted({x for _, x, _ in keys}, key=_x_order)
    found = list(dict.fromkeys(selection for _, _, selection in keys))
    selections = [s for s in SELECTIONS if s in found] + [s for s in found if s not in SELECTIONS]
    return Pivot(asked, list(rows.values()), xs, selections, len(runs) > 1, list(covered))


def x_value(tags: Mapping[str, Any], x: str | None) -> Any:
    return tags.get(x) if x else None


def best_result(table: Pivot, run: str, stages: Collection[str] | None = None) -> Result | None:
    """The result with the best mean on the first stream that has any, under the first selection rule.

    `stages`: choose among these stages only.
    """
    for stream in table.layout.streams:
        cells = [cell for row in table.rows if row.run == run for (s, _, selection), cell in row.cells.items()
                 if s == stream and selection == table.selections[0] and np.isfinite(cell.values).all()
                 and (stages is None or cell.result.stage in stages)]
        if cells:
            choose = min if table.layout.lower else max
            return choose(cells, key=lambda cell: cell.values.mean()).result
    return None


def _row_name(run: Run, result: Result, row: str | None) -> str | None:
    if row is None:
        return run.title(result.stage)
    return None if result.tags.get(row) is None else str(result.tags[row])


def _stages_of(run: Run, row: Row, asked: Layout) -> list[str]:
    """Every stage that counts as work of the row: the scored ones and those of the same tag before them."""
    scored = {cell.result.stage for cell in row.cells.values()}
    if asked.row is None:
        return [stage for stage in run.stages if stage in scored]
    return [stage for stage, facts in run.stages.items()
            if stage in scored or str((facts.get("tags") or {}).get(asked.row)) == row.name]


def _x_order(x: Any) -> tuple:
    numeric = isinstance(x, int | float) and not isinstance(x, bool)
    return (x is not None, not numeric, x if numeric else 0, "" if numeric else str(x))
