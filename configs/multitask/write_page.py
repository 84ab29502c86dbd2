"""Writes the measured sections of docs/multitask.md and docs/sharing.md and their figures from the folders of runs:

    PYTHONPATH=. python configs/multitask/write_page.py RUNS

RUNS holds one folder for each run or sweep of a config in `SECTIONS`, named like it (combinations, or
combinations_...): the ways of all runs of one config are shown together, also of those that were broken off, as far as
they came; but those of a variant (sharing_batch, sharing_batch_...) in a column of their own. Sections of configs
without a run there stay as they are.
"""

from __future__ import annotations

import ast
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from transfer_jax import command_line
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report import figures, several_tasks
from transfer_jax.experiment.report.collect import Run, joined, read_run
from transfer_jax.experiment.report.document import Picture
from transfer_jax.experiment.report.measured_page import measured_sections, with_sections
from transfer_jax.experiment.report.pivot import layout
from transfer_jax.experiment.report.statistics import summarize, text
from transfer_jax.experiment.report.tables import Table, to_markdown
from transfer_jax.experiment.report.task_section import several_task_blocks

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"


class Section(NamedTuple):
    """How the page shows the runs of a config."""

    title: str
    drawn: tuple[str, ...] = ()  # ways whose weights and gradients it shows
    examples: tuple[tuple[str, str], ...] = ()  # stage and stream of answers drawn beside the truth, worst first
    page: str = "multitask.md"
    costs: bool = False  # whether it tells what every way takes
    variants: Mapping[str, str] = {}  # suffix of the run's name ('': none) -> heading of a column of their Delta_m


SECTIONS = {
    "combinations": Section("Every combination on one benchmark", drawn=("MGDA", "FAMO")),
    "camvid": Section("Classes and borders of road scenes", examples=(("pyramid_together", "classes_test"),
                                                                      ("pyramid_together", "borders_test"))),
    "sharing": Section("Ways to share on one benchmark", drawn=("hard sharing",), page="sharing.md", costs=True,
                       variants={"": "batch norm, statistics of digits and scenes apart",
                                 "batch": "batch norm, one set of statistics", "group": "group norm"}),
}
MOST_EXAMPLES = 3


def runs_of(folder: Path, name: str) -> dict[str, Run]:
    """Variant of a config ('': as it stands) -> its runs in the folder as one; a sweep's are those in its folder."""
    found: dict[str, list[Run]] = {}
    for path in sorted(folder.glob(f"{name}*")):
        variant = next((variant for variant in SECTIONS[name].variants
                        if variant and path.name.startswith(f"{name}_{variant}")), "")
        runs = [path] if (path / "results.json").is_file() else sorted(
            own.parent for own in path.glob("*/results.json"))
        found.setdefault(variant, []).extend(map(read_run, runs))
    return {variant: joined(runs) for variant, runs in found.items() if runs}


def variant_table(runs: Mapping[str, Run], headings: Mapping[str, str]) -> Table:
    """A row a method: Delta_m of every variant that was run, each against its own reference."""
    cells: dict[str, list[str]] = {}
    shown = [variant for variant in headings if variant in runs]
    for number, variant in enumerate(shown):
        rows = several_tasks.changes(runs[variant], layout([runs[variant]]))
        changes = {row.name: text(summarize(row.change), 1, signed=True) for row in rows[1:]}
        for name in dict.fromkeys((*cells, *changes)):
            cells.setdefault(name, ["–"] * number).append(changes.get(name, "–"))
    return Table(["method", *(headings[variant] for variant in shown)],
                 [[name, *values] for name, values in cells.items()], "Δm %, every column against its own reference")


def cost_table(run: Run) -> Table:
    """A row a method: parameters that train, of all its networks, and seconds of its stages."""
    rows: dict[str, list[float]] = {}
    for stage, facts in run.stages.items():
        sums = rows.setdefault(run.title(stage), [0, 0, 0.0])
        for place, value in enumerate((1, facts["trainable"], facts["seconds"])):
            sums[place] += value
    return Table(["method", "networks", "parameters", "seconds"],
                 [[name, str(count), f"{size:,}", f"{seconds:.0f}"] for name, (count, size, seconds) in rows.items()],
                 "What it takes", notes=["Seconds of training with compilation, all seeds."])


def section(name: str, runs: Mapping[str, Run]) -> str:
    """The docstring of the config, Delta_m of every way, the trade between the tasks, how some ways went, and some
    answers; `runs`: variant -> run, see `runs_of`."""
    shown, run = SECTIONS[name], dataclasses.replace(runs[""], name=name)
    docstring = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
    first, _, rest = docstring.partition("\n\n")
    drawn = {stage: facts for stage, facts in run.stages.items() if run.title(stage) in shown.drawn}
    blocks = several_task_blocks([dataclasses.replace(run, stages=drawn)], layout([run]))
    blocks += [Picture(f"{name}_{stream}", "png", examples(run, stage, stream),
                       f"{run.title(stage)}, first seed, of {stream}: image, truth, answer; worst first.")
               for stage, stream in shown.examples]
    blocks += [variant_table(runs, shown.variants)] if len(runs) > 1 else []
    blocks += [cost_table(run)] if shown.costs else []
    parts = [f"### {shown.title}", " ".join(first.split()), rest]
    (DOCS / "figures").mkdir(exist_ok=True)
    for block in blocks:
        if isinstance(block, Table):
            parts.append(to_markdown(block))
        elif isinstance(block, Picture):
            file = DOCS / "figures" / f"multitask_{block.name}.{block.kind}"
            file.write_bytes(block.content)
            parts.append(f"![{block.caption}](figures/{file.name})")
        else:
            parts.append(str(block))
    return "\n\n".join(filter(None, parts))


def examples(run: Run, stage: str, stream: str) -> bytes:
    """PNG of the worst examples of one result, one below the other."""
    arrays = run.predictions(stage, stream)
    if arrays is None or "masks_true" not in arrays:
        raise UserError(f"{run.path} has no drawn answers of stage {stage!r} on {stream!r}; run it to its end")
    rows = [np.asarray(Image.open(io.BytesIO(figures.thumbnail(image, [true, found]))))
            for image, true, found in zip(arrays["thumbnails"][:MOST_EXAMPLES], arrays["masks_true"],
                                          arrays["masks_predicted"], strict=False)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main(arguments: list[str]) -> int:
    """Raises UserError if the folder holds no run with results."""
    folder = Path(arguments[0]) if len(arguments) == 1 else Path()
    found = {name: runs_of(folder, name) for name in SECTIONS}
    if not any(found.values()):
        raise UserError(f"{folder} holds no run ({', '.join(SECTIONS)}); run configs/multitask/combinations.py first")
    new = {name: section(name, runs) for name, runs in found.items() if "" in runs}
    for file in dict.fromkeys(SECTIONS[name].page for name in new):
        page, own = DOCS / file, {name: part for name, part in new.items() if SECTIONS[name].page == file}
        text = page.read_text()
        page.write_text(with_sections(text, {**measured_sections(text), **own}))
        print(f"written: {page}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
