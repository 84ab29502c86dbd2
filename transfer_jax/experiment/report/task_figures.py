"""Figures of tasks that are learned together; see `figures.py`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from transfer_jax.experiment.report import statistics
from transfer_jax.experiment.report.figures import WIDTH_OF_MATRIX, Curve, thin
from transfer_jax.experiment.report.several_tasks import pareto_front
from transfer_jax.experiment.report.statistics import Summary
from transfer_jax.experiment.report.style import COLORS, INK, MUTED, look, new_figure, svg


def trade_off(points: Mapping[str, tuple[Summary, Summary]], names: tuple[str, str], lower: tuple[bool, bool],
              reference: str) -> bytes:
    """Two tasks, a numbered point a method, with standard errors; the line joins those that no other beats in both.

    Dotted lines go through the reference, each task trained alone.
    """
    shown = {name: pair for name, pair in points.items() if all(np.isfinite(one.mean) for one in pair)}
    signs = [-1 if low else 1 for low in lower]
    joint = [name for name in shown if name != reference]
    front = pareto_front([(signs[0] * shown[name][0].mean, signs[1] * shown[name][1].mean) for name in joint])
    with look():
        figure = new_figure(max(3.6, 0.155 * len(joint) + 0.9))
        axes = figure.add_subplot()
        best = sorted((shown[joint[i]][0].mean, shown[joint[i]][1].mean) for i in front)
        axes.plot(*zip(*best, strict=True), color=COLORS[2], linewidth=1, zorder=1)
        for number, name in enumerate(joint):
            x, y = shown[name]
            color = COLORS[2] if number in front else COLORS[0]
            axes.errorbar(x.mean, y.mean, xerr=x.error, yerr=y.error, fmt="o", color=color, elinewidth=0.5, alpha=0.8,
                          markersize=4)
            axes.annotate(str(number + 1), (x.mean, y.mean), xytext=(3, 3), textcoords="offset points", fontsize=7.5,
                          color=INK)
        if reference in shown:
            axes.axvline(shown[reference][0].mean, color=MUTED, linestyle=":", linewidth=0.9)
            axes.axhline(shown[reference][1].mean, color=MUTED, linestyle=":", linewidth=0.9)
        axes.set_xlabel(names[0] + (" (lower is better)" if lower[0] else ""))
        axes.set_ylabel(names[1] + (" (lower is better)" if lower[1] else ""))
        for number, name in enumerate(joint):
            axes.annotate(f"{number + 1}  {textwrap.shorten(name, 30, placeholder='…')}",
                          (1.03, 1 - (number + 0.5) / max(len(joint), 12)), xycoords="axes fraction", fontsize=7.5,
                          va="center", color=COLORS[2] if number in front else INK)
        return svg(figure)


def over_time(title: str, quantities: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """A panel a quantity, a line a term: means over seeds with their 95 % interval, over the steps of a stage."""
    with look():
        figure = new_figure(1.35 * len(quantities) + 0.5)
        rows = list(np.atleast_1d(figure.subplots(len(quantities), sharex=True)))
        rows[0].set_title(textwrap.shorten(title, 60, placeholder="…"))
        for axes, (quantity, lines) in zip(rows, quantities.items(), strict=True):
            for i, (name, curve) in enumerate(lines.items()):
                steps, values = thin(*curve)
                mean, half = statistics.band(values)
                color = COLORS[i % len(COLORS)]
                axes.plot(steps, mean, color=color, label=name)
                axes.fill_between(steps, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)
            axes.set_ylabel(textwrap.fill(quantity, 16))
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2)
        rows[-1].set_xlabel("step")
        rows[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return svg(figure)


def affinity_map(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """What a step on each task (row) does for the loss of each (column), in percent; blue helps, red harms."""
    size = len(matrix)
    side = min(max(0.62 * size + 1.6, 3.2), WIDTH_OF_MATRIX)
    others = np.abs(matrix[~np.eye(size, dtype=bool)])
    limit = max(float(others.max()), 1e-12)  # a task's own gain is larger, and would leave the others pale
    with look():
        figure = new_figure(height=side * 0.92, width=side)
        axes = figure.add_subplot()
        image = axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.grid(False)
        short = [textwrap.shorten(name, 16, placeholder="…") for name in names]
        axes.set_xticks(range(size), short, rotation=0 if size <= 4 else 90, fontsize=8)
        axes.set_yticks(range(size), short, fontsize=8)
        axes.set_xlabel("loss of")
        axes.set_ylabel("step on")
        for i, j in np.ndindex(size, size):
            axes.text(j, i, f"{matrix[i, j]:.2g}", ha="center", va="center", fontsize=7.5,
                      color="#fefefe" if abs(matrix[i, j]) > 0.6 * limit else "#101010")
        bar = figure.colorbar(image, ax=axes, shrink=0.8, label="fall of the loss, %")
        bar.outline.set_visible(False)
        return svg(figure)
