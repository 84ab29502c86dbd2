"""Reports on finished runs: `report.html` (one file), `report.md` with its figures, and a table for the terminal.

Everything is read from the plain files of the workdirs, so a report can be made again, or of several runs at once,
without a model, a data set or an accelerator.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from transfer_jax.experiment.report import choices, scores
from transfer_jax.experiment.report.collect import read_runs
from transfer_jax.experiment.report.pivot import layout, pivot
from transfer_jax.experiment.report.tables import Table, print_to_terminal
from transfer_jax.training.progress import output_console

FIGURES = "report_figures"


@dataclasses.dataclass(frozen=True)
class ReportPaths:
    """The files of a report."""

    html: Path
    markdown: Path
    figures: Sequence[Path]


def write_report(workdirs: Sequence[str | os.PathLike], out: str | os.PathLike,
                 title: str | None = None) -> ReportPaths:
    """Writes `report.html`, `report.md` and `report_figures/` into the folder `out` (made if missing).

    Args:
        workdirs: one run, or several to be merged into one table with a column for the run.
        out: where to write; figures of an earlier report there are replaced.
        title: heading (default: the names in the configs).

    Raises:
        UserError: a workdir or a file in it is missing or damaged (named), or the config asks for an unknown metric.
    """
    from transfer_jax.experiment.report import document, html, markdown  # draws: slow to import

    runs = read_runs(workdirs)
    content = document.compose(runs, title)
    out = Path(out)
    shutil.rmtree(out / FIGURES, ignore_errors=True)
    (out / FIGURES).mkdir(parents=True)
    paths = []
    for picture in content.pictures():
        paths.append(out / FIGURES / f"{picture.name}.{picture.kind}")
        paths[-1].write_bytes(picture.content)
    _write(out / "report.html", html.render(content))
    _write(out / "report.md", markdown.render(content, FIGURES))
    return ReportPaths(out / "report.html", out / "report.md", paths)


def terminal_tables(workdirs: Sequence[str | os.PathLike], width: int = 100) -> list[Table]:
    """The result tables, split by selection rule where one would be wider than `width` columns, and what it costs to
    choose without target labels, if that was measured and fits."""
    runs = read_runs(workdirs)
    table = pivot(runs, layout(runs))
    tables = scores.score_tables(runs, table)
    found = [one for one in choices.read_choices(runs, table.layout) if len(one.steps) > 1]
    costs = choices.short_table(found, width)
    if len(table.selections) < 2 or all(each.width() <= width for each in tables):
        return tables + costs
    return [*(dataclasses.replace(each, title=f"{each.title} ({selection})") for selection in table.selections
            for each in scores.score_tables(runs, table, [selection])), *costs]


def terminal_table(workdirs: Sequence[str | os.PathLike], console: Console | None = None) -> None:
    """Prints the result tables of the runs to the terminal (default: stdout)."""
    console = console or output_console()
    for table in terminal_tables(workdirs, console.width):
        print_to_terminal(table, console)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
