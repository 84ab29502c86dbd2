"""Writes the measured section of docs/multitask.md and its figures from the folders of runs:

    PYTHONPATH=. python configs/multitask/write_page.py RUNS

RUNS holds one folder for each run of combinations.py, named combinations or combinations_...: the ways of all are shown
together, also of runs that were broken off, as far as they came.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

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
NAME = "combinations"
DRAWN = ("MGDA", "FAMO")  # whose weights and gradients the page shows


def joined(runs: list[Run]) -> Run:
    """One run of the finished stages of all; stages of one name are the first run's."""
    stages, results, metrics = {}, [], []
    for run in runs:
        new = {name: facts for name, facts in run.stages.items() if name not in stages}
        results += [result for result in run.results if result.stage in new]
        metrics += [line for line in run.metrics if line["stage"] in new]
        stages |= new
    return dataclasses.replace(runs[0], name=NAME, stages=stages, results=results, metrics=metrics)


def section(run: Run) -> str:
    """The docstring of the config, Delta_m of every way, the trade between the tasks, and how some ways went."""
    text = ast.get_docstring(ast.parse((HERE / f"{NAME}.py").read_text())) or ""
    first, _, rest = text.partition("\n\n")
    drawn = {stage: facts for stage, facts in run.stages.items() if run.title(stage) in DRAWN}
    blocks = several_task_blocks([dataclasses.replace(run, stages=drawn)], layout([run]))
    parts = ["### Every combination on one benchmark", " ".join(first.split()), rest]
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


def main(arguments: list[str]) -> int:
    """Raises UserError if the folder holds no run with results."""
    folder = Path(arguments[0]) if len(arguments) == 1 else Path()
    found = [read_run(path) for path in sorted(folder.glob(f"{NAME}*")) if (path / "results.json").is_file()]
    if not found:
        raise UserError(f"{folder} holds no run ({NAME}); run configs/multitask/{NAME}.py first")
    page = DOCS / "multitask.md"
    text = page.read_text()
    page.write_text(with_sections(text, {**measured_sections(text), NAME: section(joined(found))}))
    print(f"written: {page}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
