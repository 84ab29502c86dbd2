"""Figures of a report. Each function takes plain arrays and returns the bytes of one SVG (or PNG, where said)."""

from __future__ import annotations

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from PIL import Image

from transfer_jax.core.labels import VOID
from transfer_jax.experiment.report import statistics
from transfer_jax.experiment.report.statistics import Summary
from transfer_jax.experiment.report.style import (
    CLASS_COLORS,
    COLORS,
    INK,
    MARKERS,
    MUTED,
    look,
    new_figure,
    quiet,
    spread,
    svg,
)

INTERVAL = "95 % interval over seeds"


def against_x(series: Mapping[str, Mapping[Any, Summary]], x_name: str, y_name: str,
              ringed: Mapping[str, Sequence[Any]] | None = None) -> bytes:
    """One line a method through its means at every x, with the band of its 95 % interval.

    `series` maps a method to {x: Summary}; the x None (a method that knows no such setting) is drawn as a level line.
    `ringed`: method -> settings whose points have a ring of the method's colour around them.
    """
    with look():
        lines = max((_wrapped(name).count("\n") + 1 for name in series), default=1)
        height = max(3.4, 0.16 * lines * len(series) + 0.7)
        figure = new_figure(height)
        axes = figure.add_subplot()
        places = _places(axes, [x for points in series.values() for x in points if x is not None])
        ends = []
        for i, (name, points) in enumerate(series.items()):
            color, known = COLORS[i % len(COLORS)], [x for x in points if x is not None]
            known = sorted((x for x in known if np.isfinite(points[x].mean)), key=places.__getitem__)
            if known:
                ends.append((name, color, _draw_line(axes, [places[x] for x in known], [points[x] for x in known], i)))
            elif None in points and np.isfinite(points[None].mean):
                level = points[None]
                axes.axhline(level.mean, color=color, linestyle=":")
                axes.axhspan(level.low, level.high, color=color, alpha=0.08, linewidth=0)
                ends.append((name, color, (None, level.mean)))
        for i, name in enumerate(series):
            xs = (ringed or {}).get(name, ())
            axes.plot([places[x] for x in xs], [series[name][x].mean for x in xs], "o", color=COLORS[i % len(COLORS)],
                      markersize=12, fillstyle="none", markeredgewidth=2, zorder=5)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.grid(False, axis="x")
        _direct_labels(axes, ends, gap=0.155 * lines / (height - 0.6))
        return svg(figure)


def _places(axes: Axes, xs: Sequence[Any]) -> dict[Any, float]:
    """Positions of the settings: to scale if they are numbers (logarithmic over a decade), else evenly spaced."""
    values = list(dict.fromkeys(xs))
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    values.sort(key=lambda x: x if numeric else str(x))
    logarithmic = numeric and len(values) > 1 and min(values) > 0 and max(values) / min(values) >= 10
    if logarithmic:
        axes.set_xscale("log")
    places = {x: float(x) if numeric else float(i) for i, x in enumerate(values)}
    axes.set_xticks(list(places.values()), [str(x) for x in places], minor=False)
    axes.minorticks_off()
    return places


def _draw_line(axes: Axes, xs: list[float], points: list[Summary], i: int) -> tuple[float, float]:
    color, style = COLORS[i % len(COLORS)], ("-", "--", "-.")[i // len(COLORS) % 3]
    axes.plot(xs, [p.mean for p in points], style, color=color, marker=MARKERS[i % len(MARKERS)])
    if len(points) == 1:
        axes.errorbar(xs, [points[0].mean], [points[0].half or 0], color=color, capsize=2)
    elif any(p.half is not None for p in points):
        axes.fill_between(xs, [p.low for p in points], [p.high for p in points], color=color, alpha=0.13, linewidth=0)
    return xs[-1], points[-1].mean


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 26)


def _direct_labels(axes: Axes, ends: Sequence[tuple[str, str, tuple[float | None, float]]], gap: float) -> None:
    """Writes each name to the right of where its line ends, moved apart where they would meet."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    heights = [(y - low) / (high - low) for _, _, (_, y) in ends]
    for (name, color, (x, y)), start, place in zip(ends, heights, spread(heights, gap), strict=True):
        axes.annotate("", xy=(1.0, start) if x is None else (x, y), xytext=(1.04, place),
                      xycoords="axes fraction" if x is None else "data", textcoords="axes fraction",
                      arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "alpha": 0.6,
                                  "shrinkA": 0, "shrinkB": 0})
        axes.annotate(_wrapped(name), (1.05, place), xycoords="axes fraction", color=color, va="center", fontsize=8.5)


def bars(rows: Sequence[tuple[str, Summary, Sequence[float]]], x_name: str) -> bytes:
    """One horizontal bar a method with its 95 % interval; every seed is a dot. `rows`: (name, summary, seeds)."""
    with look():
        figure = new_figure(height=0.34 * len(rows) + 0.9)
        axes = figure.add_subplot()
        finite = [(i, name, s, seeds) for i, (name, s, seeds) in enumerate(rows) if np.isfinite(s.mean)]
        for i, _, summary, seeds in finite:
            axes.barh(i, summary.mean, height=0.62, color=COLORS[0], alpha=0.45,
                      xerr=summary.half, error_kw={"ecolor": INK, "capsize": 2.5, "elinewidth": 1})
            axes.plot(seeds, np.full(len(seeds), i), "o", color=COLORS[0], markersize=2.5)
        for i, (_, summary, _) in enumerate(rows):
            edge = summary.high if np.isfinite(summary.mean) else 0
            axes.annotate(statistics.text(summary), (max(edge, 0), i), xytext=(6, 0), textcoords="offset points",
                          va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [textwrap.shorten(name, 40, placeholder="…") for name, _, _ in rows])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel(x_name)
        right = max((max(s.high, *seeds) for _, _, s, seeds in finite), default=1)
        axes.set_xlim(min(0, *(s.low for _, _, s, _ in finite)) if finite else 0, right * 1.28 or 1)
        return svg(figure)


def strips(rows: Mapping[str, Mapping[str, Summary]], x_name: str) -> bytes:
    """A strip a row with a mark for each member of it and a bar at their mean; `rows` maps a name to {member: Summary}.

    Marks are means over seeds, shifted a little so that none hides another; their lines are standard errors of these
    means, as intervals of so few seeds would cover the picture."""
    members = list(dict.fromkeys(member for found in rows.values() for member in found))
    with look():
        figure = new_figure(height=0.36 * len(rows) + 1.3)
        axes = figure.add_subplot()
        for i, member in enumerate(members):
            shift = 0.6 * (i / max(len(members) - 1, 1) - 0.5)
            found = [(place + shift, row[member]) for place, row in enumerate(rows.values()) if member in row]
            axes.errorbar([summary.mean for _, summary in found], [y for y, _ in found],
                          xerr=[summary.error or 0 for _, summary in found], fmt=MARKERS[i % len(MARKERS)],
                          color=COLORS[i % len(COLORS)], elinewidth=0.9, label=member)
        means = [np.mean([summary.mean for summary in row.values()]) for row in rows.values()]
        axes.plot(means, range(len(rows)), "|", color=INK, markersize=19, markeredgewidth=2)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel(x_name)
        figure.legend(loc="outside upper center", ncols=3)
        return svg(figure)


Curve = tuple[np.ndarray, np.ndarray]  # steps [T], values [S, T]


def learning_curve(title: str, loss: Curve | None, scores: Mapping[str, Curve], metric: str,
                   limits: tuple[float, float] | None = None) -> bytes:
    """Training loss above, the evaluated metric of every stream below, over the steps of one stage; seed bands."""
    panels = (loss is not None) + bool(scores)
    with look():
        height = 1.5 * panels + 0.5
        # Margins set by hand: measuring every label for them would take half the time of a report.
        figure = new_figure(height, width=3.7, layout="none")
        figure.subplots_adjust(left=0.2, right=0.98, bottom=0.45 / height, top=1 - 0.25 / height, hspace=0.14)
        rows = list(np.atleast_1d(figure.subplots(panels, sharex=True)))
        rows[0].set_title(textwrap.shorten(title, 36, placeholder="…"))
        if loss is not None:
            axes = rows.pop(0)
            _draw_curve(axes, thin(*loss), COLORS[-1], "")
            axes.set_ylabel("training loss")
            finite = loss[1][np.isfinite(loss[1])]
            if finite.size and 0 < 100 * finite.min() < finite.max():
                axes.set_yscale("log")
            else:
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        if scores:
            axes = rows.pop(0)
            for i, (stream, curve) in enumerate(scores.items()):
                _draw_curve(axes, thin(*curve), COLORS[i % len(COLORS)], stream)
            axes.set_ylabel(metric)
            axes.set_ylim(limits)
            axes.legend(loc="best", handlelength=1.2)
        figure.align_ylabels()
        figure.axes[-1].set_xlabel("step")
        figure.axes[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return svg(figure)


def _draw_curve(axes: Axes, curve: Curve, color: str, name: str) -> None:
    mean, half = statistics.band(curve[1])
    if len(mean) == 1:
        axes.errorbar(curve[0], mean, half, color=color, label=name, marker="o", capsize=2.5)
        return
    axes.plot(curve[0], mean, color=color, label=name)
    axes.fill_between(curve[0], mean - half, mean + half, color=color, alpha=0.18, linewidth=0)


def thin(steps: np.ndarray, values: np.ndarray, most: int = 120) -> Curve:
    """At most `most` points: neighbouring steps are averaged, seed by seed. steps [T], values [S, T]."""
    bins = -(-len(steps) // most)
    if bins <= 1:
        return steps, values
    edges = np.arange(0, len(steps), bins)
    counts = np.diff(np.append(edges, len(steps)))
    return np.add.reduceat(steps, edges) / counts, np.add.reduceat(values, edges, axis=1) / counts


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Shares of every true class (row) by predicted class (column); `counts` [K, K]."""
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.42 * size + 1.2, 3.2), WIDTH_OF_MATRIX)
    with look():
        figure = new_figure(height=side * 0.92, width=side)
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if size <= 40:
            names = [textwrap.shorten(str(name), 16, placeholder="…") for name in class_names]
            names += [str(i) for i in range(len(names), size)]
            upright = max(map(len, names)) <= 2
            axes.set_xticks(range(size), names, rotation=0 if upright else 90, fontsize=8 if size <= 20 else 5.5)
            axes.set_yticks(range(size), names, fontsize=8 if size <= 20 else 5.5)
        if size <= 12:
            for i, j in np.ndindex(size, size):
                if shares[i, j] >= 0.005:
                    axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=7.5,
                              color="#fefefe" if shares[i, j] > 0.55 else "#101010")
        bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
        bar.outline.set_visible(False)
        return svg(figure)


WIDTH_OF_MATRIX = 5.4  # inches


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> tuple[bytes, float]:
    """Accuracy against confidence in equal bins, and the expected calibration error (Guo et al. 2017, eq. 3).

    `confidence` [n] in 0..1, `correct` [n] bool. Non-finite confidences are left out.
    """
    known = np.isfinite(confidence)
    confidence, correct = confidence[known], correct[known].astype(np.float64)
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = counts > 0
    accuracy = np.bincount(place, correct, bins)[filled] / counts[filled]
    mean = np.bincount(place, confidence, bins)[filled] / counts[filled]
    share = counts / max(counts.sum(), 1)
    error = float((share[filled] * np.abs(accuracy - mean)).sum())
    with look():
        figure = new_figure(height=3.6, width=3.7)
        top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], ":", color=MUTED)
        top.plot(mean, accuracy, "o-", color=COLORS[0])
        top.vlines(mean, mean, accuracy, color=COLORS[1], linewidth=1)
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        bottom.bar((np.arange(bins) + 0.5) / bins, 100 * share, width=0.9 / bins, color=COLORS[0], alpha=0.5)
        bottom.set(xlabel="confidence", ylabel="% of images")
        return svg(figure), error


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Points [n, 2] with the class [n] and the domain [n] of each."""

    title: str
    points: np.ndarray
    labels: np.ndarray
    domains: np.ndarray


def embedding(clouds: Sequence[Cloud], class_names: Sequence[str]) -> bytes:
    """One panel a cloud; colour and written name = class (the ten most frequent), marker = domain."""
    classes, frequency = np.unique(np.concatenate([cloud.labels for cloud in clouds]), return_counts=True)
    shown = sorted(classes[np.argsort(-frequency, kind="stable")][:len(CLASS_COLORS)].tolist())
    markers = {domain: DOMAIN_MARKERS[i % len(DOMAIN_MARKERS)]
               for i, domain in enumerate(np.unique(np.concatenate([cloud.domains for cloud in clouds])))}
    with look():
        figure = new_figure(height=3.3 if len(clouds) > 1 else 4.2)
        for axes, cloud in zip(np.atleast_1d(figure.subplots(1, len(clouds))), clouds, strict=True):
            _draw_cloud(axes, cloud, shown, markers, class_names)
            axes.set_title(textwrap.fill(cloud.title, 34 if len(clouds) > 1 else 70))
        handles = [figure.axes[0].plot([], [], marker, fillstyle=fill, color=MUTED, label=str(domain))[0]
                   for domain, (marker, fill) in markers.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return svg(figure)


DOMAIN_MARKERS = (("o", "full"), ("^", "none"), ("s", "full"), ("D", "none"))


def domains_and_classes(clouds: Sequence[Cloud], class_names: Sequence[str]) -> bytes:
    """A column a cloud (before, after): above, colour = domain; below, the same points, colour = class (the ten most
    frequent), pale where no label is known (-1)."""
    known = np.concatenate([cloud.labels for cloud in clouds])
    classes, frequency = np.unique(known[known >= 0], return_counts=True)
    shown = sorted(classes[np.argsort(-frequency, kind="stable")][:len(CLASS_COLORS)].tolist())
    domains = np.unique(np.concatenate([cloud.domains for cloud in clouds])).tolist()
    markers = {domain: DOMAIN_MARKERS[i % len(DOMAIN_MARKERS)] for i, domain in enumerate(domains)}
    with look():
        figure = new_figure(height=5.9 if len(clouds) > 1 else 8.0)
        panels = figure.subplots(2, len(clouds), squeeze=False)
        for (above, below), cloud in zip(panels.T, clouds, strict=True):
            quiet(above)
            for i, (domain, (marker, fill)) in enumerate(markers.items()):
                there = cloud.domains == domain
                above.plot(*cloud.points[there].T, marker, color=COLORS[i % len(COLORS)], markersize=3.2, alpha=0.75,
                           fillstyle=fill, markeredgewidth=0.7)
            above.set_title(textwrap.fill(cloud.title, 34 if len(clouds) > 1 else 70))
            _draw_cloud(below, cloud, shown, markers, class_names)
        for axes, name in zip(panels[:, 0], ("by domain", "by class"), strict=True):
            axes.set_ylabel(name)
        handles = [figure.axes[0].plot([], [], marker, fillstyle=fill, color=COLORS[i % len(COLORS)], label=str(domain))
                   [0] for i, (domain, (marker, fill)) in enumerate(markers.items())]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return svg(figure)


def _draw_cloud(axes: Axes, cloud: Cloud, shown: list[int], markers: Mapping[str, tuple[str, str]],
                class_names: Sequence[str]) -> None:
    quiet(axes)
    for domain, (marker, fill) in markers.items():
        there = cloud.domains == domain
        groups = [(there & (cloud.labels < 0), MUTED, 0.2)]  # without a label: behind the others
        groups += [(there & (cloud.labels >= 0) & ~np.isin(cloud.labels, shown), MUTED, 0.75)]
        groups += [(there & (cloud.labels == k), CLASS_COLORS[i], 0.75) for i, k in enumerate(shown)]
        for chosen, color, alpha in groups:
            axes.plot(*cloud.points[chosen].T, marker, color=color, markersize=3.2, alpha=alpha, fillstyle=fill,
                      markeredgewidth=0.7)
    for k in shown:
        points = cloud.points[cloud.labels == k]
        if not len(points):
            continue
        # The name stands at the member nearest to the middle: the middle of two clusters would be no man's land.
        place = points[np.argmin(np.abs(points - np.median(points, axis=0)).sum(axis=1))]
        name = class_names[k] if 0 <= k < len(class_names) else str(k)
        axes.text(*place, textwrap.shorten(str(name), 14, placeholder="…"), ha="center", va="center", fontsize=8,
                  weight="bold", color="#101010",
                  bbox={"boxstyle": "round,pad=0.12", "facecolor": "#fefefe", "alpha": 0.75, "edgecolor": "none"})


def thumbnail(image: np.ndarray, masks: Sequence[np.ndarray] = (), side: int = 112) -> bytes:
    """PNG of one image, uint8 [H, W, C] with 1 or 3 channels, enlarged in whole pixels to about `side`.

    `masks`, uint8 [H, W] (true, predicted), are laid over copies of it to its right, one colour a class, 0 clear,
    `VOID` black.
    """
    image = np.asarray(image, np.uint8)
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
    tiles = [image, *(_overlay(image, mask) for mask in masks)]
    gap = np.full((image.shape[0], 1, 3), 128, np.uint8)
    joined = np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
    factor = max(1, round(side / image.shape[0]))
    buffer = io.BytesIO()
    Image.fromarray(joined.repeat(factor, axis=0).repeat(factor, axis=1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    colors = np.array([[int(c[i:i + 2], 16) for i in (1, 3, 5)] for c in CLASS_COLORS], np.float64)
    tint = np.where((mask == VOID)[..., None], 0.0, colors[(mask.astype(int) - 1) % len(colors)])
    mixed = np.where((mask > 0)[..., None], 0.35 * image + 0.65 * tint, image)
    return mixed.round().astype(np.uint8)
