"""What a report says of measured affinities: which tasks help each other, and which of them should share a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from transfer_jax.evaluation.grouping import MOST_TASKS, Grouping, best_groups
from transfer_jax.experiment.report import task_figures
from transfer_jax.experiment.report.collect import Run
from transfer_jax.experiment.report.document import Picture, slug
from transfer_jax.experiment.report.statistics import decimals, summarize, text
from transfer_jax.experiment.report.tables import Table
from transfer_jax.training.affinity import PREFIX

MEANING = ("Affinity: by what share a loss falls when the shared parameters make a step on another task's loss alone "
           "(Fifty et al. 2021), mean over the measured steps.")


def measured(run: Run, stage: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the terms [T] and their affinities [S, T, T], means over the log points of a stage; () without any."""
    lines = [line["metrics"] for line in run.metrics if line["stage"] == stage and line["kind"] == "train"]
    found: dict[tuple[str, str], list[Any]] = {}
    for metrics in lines:
        for name, values in metrics.items():
            if name.startswith(PREFIX):
                _, first, second = name.split("/")
                found.setdefault((first, second), []).append(np.asarray(values, np.float64))
    names = tuple(name for name in ((run.config.get("stages") or {}).get(stage) or {}).get("objective", {}).get(
        "terms", {}) if (name, name) in found)
    names += tuple(first for first, second in found if first == second and first not in names)
    if not names:
        return (), np.zeros((0, 0, 0))
    return names, np.stack([[np.mean(found[a, b], axis=0) for b in names] for a in names]).transpose(2, 0, 1)


def in_words(grouping: Grouping, names: tuple[str, ...]) -> str:
    """The groups as one reads them: 'a + b, c alone'."""
    parts = [" + ".join(names[task] for task in group) if len(group) > 1 else f"{names[group[0]]} alone"
             for group in grouping.groups]
    return ", ".join(sorted(parts, key=lambda part: "alone" in part))


def groups_table(names: tuple[str, ...], values: np.ndarray, title: str) -> Table:
    """A row a budget: the groups of the mean over seeds, their affinity [percent], and in how many seeds they are best.

    `values`: [S, T, T].
    """
    rows: list[list[str]] = []
    digits = decimals(100 * np.abs(values).mean(0).ravel())
    for most in range(1, len(names) + 1):
        chosen = best_groups(values.mean(0), most)
        if rows and len(chosen.groups) < most:
            break  # more networks are not worth having
        same = sum(set(best_groups(own, most).groups) == set(chosen.groups) for own in values)
        scores = 100 * np.array([sum(_onto(own, group) for group in chosen.groups) for own in values])
        rows.append([str(most), in_words(chosen, names), text(summarize(scores), digits, signed=True),
                     f"{same} of {len(values)}"])
    return Table(["networks at most", "which tasks share one", "affinity, %", "best in seeds"], rows, title,
                 notes=["Sum over the tasks of what the others of their network do for them on average; a task alone "
                        "counts 0. Exact: of all ways to share."])


def _onto(affinity: np.ndarray, group: tuple[int, ...]) -> float:
    inside = affinity[np.ix_(group, group)]
    return float((inside.sum() - np.trace(inside)) / max(len(group) - 1, 1))


def blocks(run: Run, stage: str) -> list[Any]:
    """The map of the affinities that a stage measured and the groups that follow; nothing without any."""
    names, values = measured(run, stage)
    if not names:
        return []
    title = run.title(stage)
    image = task_figures.affinity_map(100 * values.mean(0), names)
    found: list[Any] = [MEANING, Picture(f"affinity_{slug(run.name)}_{slug(stage)}", "svg", image,
                                         f"{title}: affinity in percent, mean over seeds. Rows: the step.")]
    if len(names) <= MOST_TASKS:
        found.append(groups_table(names, values, f"{title}: which tasks to train together"))
    return found
