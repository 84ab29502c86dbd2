"""Writes docs/adaptation_classical.md and its figure from what the command `adapt` wrote:

    PYTHONPATH=. python configs/adaptation/write_results.py RUNS

RUNS holds one folder for each command that the page shows (office_nn1, office_tca, office_gfk10, office_svm, amazon,
amazon_labelled) with its `adapt.json`. Tables whose run is not there are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transfer_jax import command_line
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report import figures
from transfer_jax.experiment.report.statistics import Summary
from transfer_jax.experiment.report.tables import Table, to_markdown

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
PUBLISHED = HERE / "published.json"
TEXT = HERE / "page.md"
TITLES = {
    "office_nn1": "Office-Caltech10, SURF, 1-NN: accuracy %",
    "office_gfk10": "GFK with 10 dimensions, 1-NN: accuracy %",
    "office_svm": "Office-Caltech10, SURF, linear SVM: accuracy %",
    "amazon": "Amazon reviews, 400 words, logistic regression: accuracy %",
    "amazon_labelled": "the same with 25 labelled target reviews of each class: accuracy % on the others",
}
OTHERS = "office_tca"  # its methods join the table of office_nn1
MARK = "<!-- {} -->"
LIMIT = 2.0  # points of difference from which a cell is set in bold


class Run(NamedTuple):
    """One call of the command: pair -> method -> accuracy in percent, and seconds by method over all pairs."""

    accuracy: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    methods: tuple[str, ...]


def read_run(path: Path) -> Run:
    """The run in an `adapt.json`."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
        accuracy: dict[str, dict[str, float]] = {}
        for row in rows:
            accuracy.setdefault(f"{row['source']} {row['target']}", {})[row["method"]] = 100 * row["accuracy"]
        methods = tuple(dict.fromkeys(row["method"] for row in rows))
        seconds = {name: sum(row["seconds"] for row in rows if row["method"] == name) for name in methods}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what `adapt --output` writes with labelled targets ({error})") from error
    return Run(accuracy, seconds, methods)


def joined(run: Run, other: Run) -> Run:
    """One run of the methods of both, the other's where both have one."""
    accuracy = {pair: {**found, **other.accuracy.get(pair, {})} for pair, found in run.accuracy.items()}
    return Run(accuracy, {**run.seconds, **other.seconds}, tuple(dict.fromkeys((*run.methods, *other.methods))))


def compared(run: Run, published: Mapping[str, Any], title: str) -> str:
    """A row a pair: what was measured and, where a published value was found, the difference to it."""
    pairs = [pair for pair in published["pairs"] if pair in run.accuracy]
    pairs += [pair for pair in run.accuracy if pair not in pairs]
    rows, bold = [], set()
    for i, pair in enumerate(pairs):
        cells = [pair.replace(" ", " to ")]
        for j, method in enumerate(run.methods, 1):
            value, told = run.accuracy[pair][method], _told(published, method, pair)
            cells.append(f"{value:.2f}" if told is None else f"{value:.2f} ({_difference(value, told)})")
            if told is not None and abs(round(value - told, 2)) > LIMIT:
                bold.add((i, j))
        rows.append(cells)
    last = ["mean"]
    for method in run.methods:
        mean = np.mean([run.accuracy[pair][method] for pair in pairs])
        told = [_told(published, method, pair) for pair in pairs]
        last.append(f"{mean:.2f}" if None in told else f"{mean:.2f} ({_difference(mean, np.mean(told))})")
    rows += [last, ["seconds", *(f"{run.seconds[method]:.0f}" for method in run.methods)]]
    missing = [method for method in run.methods if method not in published["methods"]]
    notes = ["In parentheses: difference to the published value; bold: above 2 points. Source of the published "
             f"values: {published['source']}"]
    notes += [f"{', '.join(missing)}: published value not found here."] if missing else []
    return to_markdown(Table(("pair", *run.methods), rows, title, bold, notes))


def _difference(value: float, told: float) -> str:
    return f"{round(value - told, 2) + 0.0:+.2f}"  # never -0.00


def _told(published: Mapping[str, Any], method: str, pair: str) -> float | None:
    values = published["methods"].get(method)
    return None if values is None or pair not in published["pairs"] else values[published["pairs"].index(pair)]


def plain(run: Run, title: str) -> str:
    """A row a pair; the best of each in bold."""
    rows, bold = [], set()
    for i, (pair, found) in enumerate(run.accuracy.items()):
        best = max(found.values())
        rows.append([pair.replace(" ", " to "), *(f"{found[method]:.2f}" for method in run.methods)])
        bold |= {(i, j) for j, method in enumerate(run.methods, 1) if found[method] == best}
    means = [np.mean([found[method] for found in run.accuracy.values()]) for method in run.methods]
    rows.append(["mean", *(f"{mean:.2f}" for mean in means)])
    rows.append(["seconds", *(f"{run.seconds[method]:.0f}" for method in run.methods)])
    return to_markdown(Table(("pair", *run.methods), rows, title, bold))


def gains(runs: Mapping[str, Run]) -> bytes:
    """SVG: gain over no adaptation, a line a method, a mark a source domain (mean over its targets)."""
    rows: dict[str, dict[str, Summary]] = {}
    run = runs["office_nn1"]
    sources = list(dict.fromkeys(pair.split()[0] for pair in run.accuracy))
    for method in run.methods:
        if method == "none":
            continue
        rows[method] = {}
        for source in sources:
            found = [values[method] - values["none"] for pair, values in run.accuracy.items()
                     if pair.split()[0] == source]
            rows[method][f"from {source}"] = Summary(float(np.mean(found)), None, 1)
    return figures.strips(rows, "accuracy less that without adaptation, points (1-NN, Office-Caltech10 SURF)")


def main(arguments: Sequence[str]) -> int:
    """Writes the page; a UserError if the folder holds none of the runs."""
    folder = Path(arguments[0]) if len(arguments) == 1 else Path()
    runs = {name: read_run(folder / name / "adapt.json") for name in (*TITLES, OTHERS)
            if (folder / name / "adapt.json").is_file()}
    if "office_nn1" in runs and OTHERS in runs:
        runs["office_nn1"] = joined(runs["office_nn1"], runs.pop(OTHERS))
    if not runs:
        raise UserError(f"{folder} holds no run ({', '.join(TITLES)}); docs/adaptation_classical.md shows the commands")
    published = json.loads(PUBLISHED.read_text())
    text = TEXT.read_text()
    for name, run in runs.items():
        told = published.get("office_nn1" if name == "office_gfk10" else name)
        text = text.replace(MARK.format(name), compared(run, told, TITLES[name]) if told else plain(run, TITLES[name]))
    if "office_nn1" in runs:
        (DOCS / "figures").mkdir(exist_ok=True)
        (DOCS / "figures" / "adaptation_classical_gains.svg").write_bytes(gains(runs))
    (DOCS / "adaptation_classical.md").write_text(text)
    print(f"written: {DOCS / 'adaptation_classical.md'}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
