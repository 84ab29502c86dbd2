"""Writes the measured sections of docs/multitask.md and docs/sharing.md and their figures from the folders of runs:

    python configs/multitask/write_page.py RUNS

RUNS holds one folder for each run of combinations.py, named combinations or combinations_..., and of sharing.py alike:
the ways of all are shown together, also of runs that were broken off, as far as they came.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import NamedTuple

from transfer_jax import command_line
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report.collect import Run, read_run
from transfer_jax.experiment.report.document import Picture
from transfer_jax.experiment.report.measured_page import measured_sections, with_sections
from transfer_jax.experiment.report.pivot import layout
from transfer_jax.experiment.report.tables import Table, to_markdown
from transfer_jax.experiment.report.task_section import several_task_blocks

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"


class Page(NamedTuple):
    """Where a config's runs are shown: the page, the heading, whose weights and gradients are drawn, and whether it is
    told what every row costs."""

    file: str
    heading: str
    drawn: tuple[str, ...]
    costs: bool = False


PAGES = {"combinations": Page("multitask.md", "Every combination on one benchmark", ("MGDA", "FAMO")),
         "sharing": Page("sharing.md", "Ways to share, on one benchmark", ("hard sharing",), costs=True)}


def joined(name: str, runs: list[Run]) -> Run:
    """One run of the finished stages of all; stages of one name are the first run's."""
    stages, results, metrics = {}, [], []
    for run in runs:
        new = {stage: facts for stage, facts in run.stages.items() if stage not in stages}
        results += [result for result in run.results if result.stage in new]
        metrics += [line for line in run.metrics if line["stage"] in new]
        stages |= new
    config = {**runs[0].config, "stages": {stage: spec for run in reversed(runs)
                                           for stage, spec in (run.config.get("stages") or {}).items()}}
    return dataclasses.replace(runs[0], name=name, stages=stages, results=results, metrics=metrics, config=config)


def cost_table(run: Run) -> Table:
    """A row a method: parameters that train, of all its networks, and seconds of its stages."""
    rows: dict[str, list[float]] = {}
    for stage, facts in run.stages.items():
        found = rows.setdefault(run.title(stage), [0, 0, 0.0])
        for place, value in enumerate((1, facts["trainable"], facts["seconds"])):
            found[place] += value
    return Table(["method", "networks", "parameters", "seconds"],
                 [[name, str(count), f"{size:,}", f"{seconds:.0f}"] for name, (count, size, seconds) in rows.items()],
                 "What it takes", notes=["Seconds of training with compilation, all seeds."])


def section(run: Run) -> str:
    """The docstring of the config, Delta_m of every way, what it costs, and how some ways went."""
    page = PAGES[run.name]
    text = ast.get_docstring(ast.parse((HERE / f"{run.name}.py").read_text())) or ""
    first, _, rest = text.partition("\n\n")
    drawn = {stage: facts for stage, facts in run.stages.items() if run.title(stage) in page.drawn}
    blocks = several_task_blocks([dataclasses.replace(run, stages=drawn)], layout([run]))
    parts = [f"### {page.heading}", " ".join(first.split()), rest]
    (DOCS / "figures").mkdir(exist_ok=True)
    for block in [*blocks, *([cost_table(run)] if page.costs else [])]:
        if isinstance(block, Table):
            parts.append(to_markdown(block))
        elif isinstance(block, Picture):
            file = DOCS / "figures" / f"multitask_{block.name}.{block.kind}"
            file.write_bytes(block.content)
            parts.append(f"![{block.caption}](figures/{file.name})")
        else:
            parts.append(str(block))
    return "\n\n".join(filter(None, parts))


def main(arguments: list[str]) -> int:
    """Raises UserError if the folder holds no run with results."""
    folder = Path(arguments[0]) if len(arguments) == 1 else Path()
    found = {name: [read_run(path) for path in sorted(folder.glob(f"{name}*")) if (path / "results.json").is_file()]
             for name in PAGES}
    if not any(found.values()):
        raise UserError(f"{folder} holds no run ({', '.join(PAGES)}); run one of these configs first")
    for name, runs in found.items():
        if runs:
            page = DOCS / PAGES[name].file
            text = page.read_text()
            page.write_text(with_sections(text, {**measured_sections(text), name: section(joined(name, runs))}))
            print(f"written: {page}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
