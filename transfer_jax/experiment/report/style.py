"""The look of all figures: colours that every eye can tell apart, SVG that follows light and dark mode."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# M. Okabe and K. Ito, "Color universal design" (2008); yellow left out, it vanishes on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# P. Tol, "Colour schemes" (2021), scheme "muted": more classes than Okabe and Ito have colours.
CLASS_COLORS = ("#CC6677", "#332288", "#999933", "#117733", "#88CCEE", "#882255", "#44AA99", "#DDCC77", "#AA4499",
                "#7F7F7F")
INK, MUTED, GRID = "#1b1f24", "#6e7781", "#d8dee4"
WIDTH = 5.6  # inches; one figure fills a phone, where its 9 point letters stay legible

# Colours of the light figure and what stands for them when the reader's system is dark.
_DARK = {INK: "#e6edf3", MUTED: "#9aa4af", GRID: "#343b44", COLORS[0]: "#3d8bd4", COLORS[5]: "#a5dcfa",
         "#332288": "#8f83d8", "#882255": "#d0679b", "#117733": "#4fae6e"}

_RC = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"], "font.size": 9,
    "svg.fonttype": "none", "svg.hashsalt": "transfer_jax", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "lines.linewidth": 1.5,
    "lines.markersize": 4, "legend.frameon": False, "legend.fontsize": 8, "figure.constrained_layout.use": True,
}


@contextlib.contextmanager
def look() -> Iterator[None]:
    """Figures made inside have the look of the report; the caller's settings come back after."""
    with matplotlib.rc_context(_RC):
        yield


def new_figure(height: float, width: float = WIDTH, layout: str | None = None) -> Figure:
    """A figure outside pyplot's global state, `width` x `height` inches; `layout` 'none' leaves the margins alone."""
    return Figure(figsize=(width, height), layout=layout)


def svg(figure: Figure) -> bytes:
    """The figure as SVG: same bytes for the same data, no outside reference, dark colours where the reader's are."""
    FigureCanvasSVG(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue().decode("utf-8")
    text = re.sub(r"<!DOCTYPE.*?>\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>\n?", "", text, flags=re.DOTALL)
    rules = "".join(f'[style*="{kind}: {light.lower()}"]{{{kind}:{dark} !important}}'
                    for light, dark in _DARK.items() for kind in ("fill", "stroke"))
    # Text without a colour of its own would stay black.
    rules += f"text:not([style*='fill:']){{fill:{_DARK[INK]}}}"
    start = text.index(">", text.index("<svg")) + 1
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return (text[:start] + style + text[start:]).encode("utf-8")


def spread(positions: list[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """`positions` moved so that neighbours keep `gap` within low..high (for labels); their order is kept.

    Labels that touch form a block around their mean wish; if there is no room for all, they run below `low`.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    blocks: list[list[float]] = []  # [mean of (wish - offset in the block), count]
    for i in order:
        blocks.append([positions[i], 1])
        while len(blocks) > 1 and blocks[-2][0] + blocks[-2][1] * gap > blocks[-1][0]:
            start, count = blocks.pop()
            before, size = blocks[-1]
            blocks[-1] = [(before * size + (start - size * gap) * count) / (size + count), size + count]
    places = [start + j * gap for start, count in blocks for j in range(int(count))]
    for k in range(len(places)):
        places[k] = max(places[k], low + k * gap)
    for k in range(len(places)):
        places[-1 - k] = min(places[-1 - k], high - k * gap)
    moved = [0.0] * len(positions)
    for place, i in zip(places, order, strict=True):
        moved[i] = place
    return moved


def quiet(axes: Axes) -> None:
    """Takes ticks, grid and frame away (images, embeddings)."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
