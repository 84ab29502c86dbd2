"""What a report says of tasks that are learned together: Delta_m, the trade between two, weights and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from transfer_jax.experiment.report import statistics
from transfer_jax.experiment.report.collect import Run
from transfer_jax.experiment.report.pivot import Layout
from transfer_jax.experiment.report.statistics import Summary, lower_is_better, summarize
from transfer_jax.experiment.report.tables import Table

MEANING = ("Δm: the change against the tasks trained alone, relative to their score and counted as a gain where the "
           "task got better, seed by seed, mean over the tasks (Maninis et al. 2019).")
MOST_STAGES = 6  # whose weights and gradients are drawn
GROUPS = {"weight of the term": "weight_", "length of the gradient": "gradient_norm/",
          "cosine of two gradients": "cosine/", "share of steps left out": "/skipped"}


class Change(NamedTuple):
    """One row of the report against the reference: scores [S] by stream, and the relative change in percent [S]."""

    name: str
    scores: Mapping[str, np.ndarray]
    change: np.ndarray


def scores_of(run: Run, asked: Layout, tasks: Mapping[str, str]) -> dict[str, dict[str, np.ndarray]]:
    """Row -> stream -> the task's score [S], of the last parameters."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for result in run.results:
        metric = tasks.get(result.stream)
        row = result.tags.get(asked.row) if asked.row else run.title(result.stage)
        if row is not None and metric in result.metrics and result.selection == "last":
            found.setdefault(str(row), {})[result.stream] = result.metrics[metric]
    return found


def changes(run: Run, asked: Layout) -> list[Change]:
    """Every row that has a score of every task, the reference first; empty where the config names no tasks."""
    tasks = (run.config.get("report") or {}).get("tasks") or {}
    found = scores_of(run, asked, tasks)
    alone = found.get(str(asked.reference), {})
    if len(tasks) < 2 or set(alone) != set(tasks):
        return []
    rows = []
    for name in sorted(found, key=lambda name: name != asked.reference):
        row = found[name]
        if set(row) == set(tasks) and all(len(row[stream]) == len(alone[stream]) for stream in tasks):
            rows.append(Change(name, {stream: row[stream] for stream in tasks}, mean_change(row, alone, tasks)))
    return rows


def mean_change(scores: Mapping[str, np.ndarray], alone: Mapping[str, np.ndarray],
                tasks: Mapping[str, str]) -> np.ndarray:
    """Delta_m in percent, [S]: mean over tasks of (-1)^(lower is better) (score - alone) / alone."""
    parts = [(-1 if lower_is_better(metric) else 1) * (scores[stream] - alone[stream]) / np.abs(alone[stream])
             for stream, metric in tasks.items()]
    return 100 * np.mean(parts, axis=0)


def change_table(rows: Sequence[Change], tasks: Mapping[str, str]) -> Table:
    """A row a method: the score of every task and Delta_m; bold: its interval does not contain 0."""
    cells, bold = [], set()
    for i, row in enumerate(rows):
        found = summarize(row.change)
        if i and found.half is not None and found.low * found.high > 0:
            bold.add((i, len(tasks) + 1))
        cells.append([row.name, *(statistics.text(summarize(row.scores[stream])) for stream in tasks),
                      statistics.text(found, 1, signed=True) if i else "reference"])
    columns = ["method", *(f"{metric} on {stream}" for stream, metric in tasks.items()), "Δm %"]
    return Table(columns, cells, f"Against {rows[0].name}", bold,
                 ["Mean ± half width of the 95 % interval over seeds. Bold: it does not contain 0."])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points (larger is better) that no other point matches in one and beats in the other coordinate."""
    return [i for i, (x, y) in enumerate(points)
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)]


def trade(rows: Sequence[Change], tasks: Mapping[str, str]) -> dict[str, tuple[Summary, Summary]]:
    """Method -> its scores on the first two tasks."""
    first, second = list(tasks)[:2]
    return {row.name: (summarize(row.scores[first]), summarize(row.scores[second])) for row in rows}


def curves_of(run: Run, stage: str) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Quantity -> name of the term (or of two) -> (steps [N], values [S, N]), of what the stage logged of its terms."""
    lines = [line for line in run.metrics if line["stage"] == stage and line["kind"] == "train"]
    names = dict.fromkeys(name for line in lines for name in line["metrics"])
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for title, mark in GROUPS.items():
        for name in names:
            if not (name.endswith(mark) if mark.startswith("/") else name.startswith(mark)):
                continue
            values = np.array([line["metrics"][name] for line in lines if name in line["metrics"]], np.float64).T
            if mark.startswith("/") and not values.any():
                continue
            steps = np.array([line["step"] for line in lines if name in line["metrics"]], np.float64)
            found.setdefault(title, {})[name.replace(mark, "").replace("/", " · ")] = (steps, values)
    return found
