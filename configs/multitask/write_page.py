"""Writes the measured sections of docs/multitask.md and docs/sharing.md and their figures from the folders of runs:

    PYTHONPATH=. python configs/multitask/write_page.py RUNS

RUNS holds one folder for each run of a config in `SECTIONS`, named like it (combinations, or combinations_...): the
ways of all runs of one config are shown together, also of those that were broken off, as far as they came. Sections of
configs without a run there stay as they are.
"""

from __future__ import annotations

import ast
import dataclasses
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from transfer_jax import command_line
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report import figures
from transfer_jax.experiment.report.collect import Run, read_run
from transfer_jax.experiment.report.document import Picture
from transfer_jax.experiment.report.measured_page import measured_sections, with_sections
from transfer_jax.experiment.report.pivot import layout
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


SECTIONS = {
    "combinations": Section("Every combination on one benchmark", drawn=("MGDA", "FAMO")),
    "camvid": Section("Classes and borders of road scenes", examples=(("pyramid_together", "classes_test"),
                                                                      ("pyramid_together", "borders_test"))),
    "sharing": Section("Ways to share on one benchmark", drawn=("hard sharing",), page="sharing.md", costs=True),
}
MOST_EXAMPLES = 3


def joined(runs: list[Run]) -> Run:
    """One run of the finished stages of all; stages of one name are the first run's."""
    stages, results, metrics = {}, [], []
    for run in runs:
        new = {name: facts for name, facts in run.stages.items() if name not in stages}
        results += [result for result in run.results if result.stage in new]
        metrics += [line for line in run.metrics if line["stage"] in new]
        stages |= new
    config = {**runs[0].config, "stages": {stage: spec for run in reversed(runs)
                                           for stage, spec in (run.config.get("stages") or {}).items()}}
    return dataclasses.replace(runs[0], stages=stages, results=results, metrics=metrics, config=config)


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


def section(name: str, run: Run) -> str:
    """The docstring of the config, Delta_m of every way, the trade between the tasks, how some ways went, and some
    answers."""
    shown, run = SECTIONS[name], dataclasses.replace(run, name=name)
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
    first, _, rest = text.partition("\n\n")
    drawn = {stage: facts for stage, facts in run.stages.items() if run.title(stage) in shown.drawn}
    blocks = several_task_blocks([dataclasses.replace(run, stages=drawn)], layout([run]))
    blocks += [Picture(f"{name}_{stream}", "png", examples(run, stage, stream),
                       f"{run.title(stage)}, first seed, of {stream}: image, truth, answer; worst first.")
               for stage, stream in shown.examples]
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
    found = {name: [read_run(path) for path in sorted(folder.glob(f"{name}*")) if (path / "results.json").is_file()]
             for name in SECTIONS}
    if not any(found.values()):
        raise UserError(f"{folder} holds no run ({', '.join(SECTIONS)}); run configs/multitask/combinations.py first")
    new = {name: section(name, joined(runs)) for name, runs in found.items() if runs}
    for file in dict.fromkeys(SECTIONS[name].page for name in new):
        page, own = DOCS / file, {name: part for name, part in new.items() if SECTIONS[name].page == file}
        text = page.read_text()
        page.write_text(with_sections(text, {**measured_sections(text), **own}))
        print(f"written: {page}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
