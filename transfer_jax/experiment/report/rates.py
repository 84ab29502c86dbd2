"""The figure of a learning-rate range test."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from transfer_jax.experiment.range_test import RangeTest
from transfer_jax.experiment.report.document import Document, Picture, Section
from transfer_jax.experiment.report.html import render
from transfer_jax.experiment.report.style import COLORS, MUTED, look, new_figure, svg


def write_rates(test: RangeTest, stage: str, out: Path) -> None:
    """Writes the figure as a page, an SVG or a PNG, by the suffix of `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with look():
        figure = draw_rates(test)
        if out.suffix == ".png":
            figure.set_facecolor("white")
            FigureCanvasAgg(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=200, facecolor="white")
            out.write_bytes(buffer.getvalue())
            return
        content = svg(figure)
    if out.suffix == ".svg":
        out.write_bytes(content)
        return
    rates = ", ".join(f"{name} {rate:.1e}" for name, rate in test.suggestions.items())
    picture = Picture("rates", "svg", content,
                      f"Loss of each step while the learning rate grows; to start from: {rates}")
    out.write_text(render(Document(f"Learning rates of stage {stage}", [
        "steepest: where the smoothed loss falls fastest; tenth: a tenth of the rate of its lowest point",
        "a start for a search on validation data, not an optimum"], [Section("Range test", [picture])])))


def draw_rates(test: RangeTest) -> Figure:
    """The loss over the rate, both as measured and smoothed, with the suggestions."""
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    smoothed = test.smoothed
    axes.plot(test.rates, np.mean(test.losses, axis=1), color=MUTED, linewidth=0.8, alpha=0.6, label="loss")
    axes.plot(test.rates, smoothed, color=COLORS[0], label="smoothed")
    for (name, rate), color in zip(test.suggestions.items(), COLORS[1:], strict=False):
        axes.axvline(rate, color=color, linestyle=":", label=f"{name}: {rate:.1e}")
    low, high = smoothed.min(), max(smoothed[0], np.median(smoothed))
    axes.set_ylim(low - 0.1 * (high - low + 1e-6), high + 0.6 * (high - low + 1e-6))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend(loc="best", handlelength=1.2)
    return figure
