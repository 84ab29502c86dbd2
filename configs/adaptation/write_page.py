"""Writes the measured section of docs/adaptation.md and its figures from the folders of finished runs:

    PYTHONPATH=. python configs/adaptation/write_page.py RUNS

RUNS holds one folder for each name of `CONFIGS`, of a run or of a sweep; those that are not there keep their section.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

from transfer_jax import command_line
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report import choices, statistics
from transfer_jax.experiment.report.collect import read_runs
from transfer_jax.experiment.report.document import result_figures
from transfer_jax.experiment.report.measured_page import measured_sections, with_sections
from transfer_jax.experiment.report.pivot import Pivot, layout, pivot
from transfer_jax.experiment.report.scores import score_tables
from transfer_jax.experiment.report.tables import Table, to_markdown
from transfer_jax.experiment.sweeping import finished_runs

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
# Name of a run -> the config whose docstring tells of it; the first of several runs of one config shows the text.
CONFIGS = {"mnist_usps": "digits", "usps_mnist": "digits", "mnist_mnistm": "digits", "photo_art": "pacs",
           "photo_sketch": "pacs", "test_time": "test_time", "selection_bias": "selection_bias",
           "generalization": "generalization"}
TITLES = {"mnist_usps": "Digits: MNIST to USPS", "usps_mnist": "Digits: USPS to MNIST",
          "mnist_mnistm": "Digits: MNIST to MNIST-M", "photo_art": "PACS: photographs to paintings",
          "photo_sketch": "PACS: photographs to sketches"}
# Accuracy in percent that tllib's table of digits gives (its git history, commit c607113^; 50,000 steps of batch 128,
# the best epoch chosen by target labels): MNIST to USPS, USPS to MNIST.
PUBLISHED = {"source only": (82.1, 74.6), "DANN": (91.7, 95.2), "DAN": (86.0, 89.5), "JAN": (84.0, 86.8),
             "ADDA": (94.5, 98.3), "CDAN": (96.0, 97.7), "MCD": (94.1, 97.6), "AFN": (88.6, 97.2),
             "BSP": (95.7, 97.8), "MDD": (94.8, 97.8), "MCC": (95.1, 94.6)}
COLUMN = {"mnist_usps": 0, "usps_mnist": 1}


def section(name: str, folder: Path, with_text: bool) -> str:
    """One run: the docstring of its config, its table, what choosing costs, its figures (written beside the page)."""
    runs = read_runs(finished_runs(folder))
    table = pivot(runs, layout(runs))
    if len({row.name for row in table.rows}) == len(table.rows):
        table = dataclasses.replace(table, several_runs=False)  # those of a sweep over methods need no other name
    text = (ast.get_docstring(ast.parse((HERE / f"{CONFIGS[name]}.py").read_text())) or "") if with_text else ""
    first, _, rest = text.partition("\n\n")
    parts = [f"### {TITLES.get(name, table.layout.title)}", " ".join(first.split()), rest,
             *map(to_markdown, score_tables(runs, table))]
    if name in COLUMN:
        parts.append(to_markdown(published(table, COLUMN[name])))
    found = choices.read_choices(runs, table.layout)
    if found:
        parts.append(to_markdown(cost_of_choosing(found)))
    (DOCS / "figures").mkdir(exist_ok=True)
    for picture in result_figures(table):
        file = DOCS / "figures" / f"adaptation_{name}_{picture.name}.{picture.kind}"
        file.write_bytes(picture.content)
        parts.append(f"![{picture.caption}](figures/{file.name})")
    return "\n\n".join(filter(None, parts))


def published(table: Pivot, column: int) -> Table:
    """Ours beside the published ones, of methods that have one."""
    rows = []
    for row in table.rows:
        label, cells = table.label(row), list(row.cells.values())
        if label in PUBLISHED and cells:
            rows.append([label, f"{100 * cells[0].values.mean():.1f}", f"{PUBLISHED[label][column]:.1f}"])
    return Table(["method", "here", "published"], rows,
                 "Accuracy in percent: here, with the small network and budget, and as published (tllib)")


def cost_of_choosing(found: list[choices.Choices]) -> Table:
    """What each rule falls short of the oracle, on average over the methods."""
    rules = [rule for rule in found[0].rules if rule != choices.ORACLE and all(rule in one.rules for one in found)]
    rows = []
    for rule in rules:
        mean = sum(one.regret(rule) for one in found) / len(found)
        rows.append([rule, statistics.text(statistics.summarize(mean), 3)])
    return Table(["rule", "regret"], rows, f"Regret of choosing an evaluation point by a rule, mean over {len(found)} "
                                           f"stages")


def main(arguments: list[str]) -> int:
    """Raises UserError if the folder holds none of the runs."""
    folder = Path(arguments[0]) if len(arguments) == 1 else Path()
    done = [name for name in CONFIGS if finished_runs(folder / name)]
    if not done:
        raise UserError(f"{folder} holds no finished run ({', '.join(CONFIGS)}); run one first")
    page = DOCS / "adaptation.md"
    kept, sections, told = measured_sections(page.read_text()), {}, set()
    for name, config in CONFIGS.items():
        if name in done:
            sections[name] = section(name, folder / name, config not in told)
        elif name in kept:
            sections[name] = kept[name]
        told |= {config} if name in sections else set()
    page.write_text(with_sections(page.read_text(), sections))
    print(f"written: {page}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
