"""Writes docs/results.md and its figures from the folders of finished ablations:

    PYTHONPATH=. python configs/ablations/write_results.py RUNS

RUNS holds one folder for each ablation, named like its config: a run, or a sweep, whose finished runs stand together;
those that are not there keep their section.
`transferability_more` holds targets of the ablation `transferability` from another run of it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report.agreement import read_rankings, tau_figure, tau_table, truth_table
from transfer_jax.experiment.report.collect import read_runs
from transfer_jax.experiment.report.document import Picture, result_figures
from transfer_jax.experiment.report.pivot import layout, pivot
from transfer_jax.experiment.report.regret import chosen_cells, read_advice, regret_table, with_choices
from transfer_jax.experiment.report.scores import score_tables
from transfer_jax.experiment.report.tables import Table, to_markdown
from transfer_jax.experiment.sweeping import runs_of

CONFIGS = Path(__file__).resolve().parent
DOCS = CONFIGS.parents[1] / "docs"
NAMES = ("transferable_features", "learning_curves", "distortion", "situations", "few_parameters", "regularizers",
         "transferability", "transferability_more")
MORE = "The same sources and the same protocol on other targets; what is seen stands in the section above."
HEAD = """# Results of the ablations

Written by `configs/ablations/write_results.py` from the files of the runs; what each does stands in its config. Means
and half widths of 95 % intervals over the seeds, after the last step.
"""


def section(name: str, workdir: Path) -> str:
    """One ablation: its docstring, its tables, its figures (written beside the page)."""
    if name.startswith("transferability"):
        return scores_and_truth(name, workdir)
    run = read_runs(runs_of(workdir))
    table = pivot(run, layout(run))
    advice = read_advice(run[0], table) if len(run) == 1 else []
    tables = score_tables(run, table)
    if advice:
        tables = [with_choices(each, advice, stream) for each, stream in zip(tables, table.layout.streams, strict=True)]
        tables.append(regret_table(advice, table.layout.lower))
    rings = {stream: chosen_cells(advice, stream) for stream in table.layout.streams}
    return page_section(name, table.layout.title, tables, result_figures(table, rings, "the advisor's choice"))


def scores_and_truth(name: str, folder: Path) -> str:
    """A section of the ablation that is made of rankings."""
    found = read_rankings(folder)
    caption = ("Weighted Kendall's tau of each score (a line) on each target (a mark: mean over the seeds and its "
               "standard error); bar: mean over the targets.")
    picture = Picture("tau", "svg", tau_figure(found), caption)
    title = "Transferability scores against fine-tuned truth"
    return page_section(name, title if name == "transferability" else f"{title}: more targets",
                        [tau_table(found), truth_table(found)], [picture])


def is_done(folder: Path) -> bool:
    """Whether the folder holds finished runs, or rankings of such."""
    return bool(runs_of(folder)) or any(folder.glob("*/rank.json"))


def page_section(name: str, title: str, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The docstring of a config, then tables, then pictures, which are written beside the page."""
    parts = [*opening(name, title), *map(to_markdown, tables)]
    (DOCS / "figures").mkdir(exist_ok=True)
    for picture in pictures:
        file = DOCS / "figures" / f"{name}_{picture.name}.{picture.kind}"
        file.write_bytes(picture.content)
        parts.append(f"![{picture.caption}](figures/{file.name})")
    return "\n\n".join(parts)


def opening(name: str, title: str) -> list[str]:
    """What stands above the tables of a section."""
    file = CONFIGS / f"{name}.py"
    text = (ast.get_docstring(ast.parse(file.read_text())) or "") if file.is_file() else MORE
    first, _, rest = text.partition("\n\n")
    return [f"## {title}", " ".join(first.split()), *([rest] if rest else [])]


def kept(name: str, old: str) -> str:
    """The section of a run that is not there: its tables and figures, below the docstring as it is now."""
    title, above, tables = old.strip().removeprefix("## ").partition("\n\n**")
    return "\n\n".join(opening(name, title.split("\n")[0])) + above + tables


def main(arguments: list[str]) -> int:
    """Exit code 2, with a sentence, if the folder holds none of the runs."""
    page = DOCS / "results.md"
    old = dict(part.split("\n", 1) for part in page.read_text().split("\n<!-- ")[1:]) if page.is_file() else {}
    folder = Path(arguments[0]) if len(arguments) == 1 else Path()
    found = [name for name in NAMES if is_done(folder / name)]
    if not found:
        print(f"error: {folder} holds no finished ablation ({', '.join(NAMES)}); run one first", file=sys.stderr)
        return 2
    parts = [HEAD]
    for name in NAMES:
        mark = f"{name} -->"
        if name in found:
            parts.append(f"<!-- {mark}\n{section(name, folder / name)}")
        elif mark in old:
            parts.append(f"<!-- {mark}\n{kept(name, old[mark])}")
    page.write_text("\n".join(part.rstrip() + "\n" for part in parts))
    print(f"written: {page}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
