"""Scores of a saved checkpoint, independent of the run that made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from transfer_jax.core.compilation import enable_compilation_cache
from transfer_jax.core.errors import unknown
from transfer_jax.core.mesh import place, replicate
from transfer_jax.experiment import results
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.evaluators import Evaluators
from transfer_jax.experiment.export import exported_stage
from transfer_jax.experiment.validation import Validation, metric_lines
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.progress import print_table


def rescore(folder: Path, stage: str | None, step: int | None, select: str, out: Path | None) -> None:
    """Scores a checkpoint on every stream that its stage evaluates, its validators too, prints the table and writes it
    as JSON."""
    workdir = Workdir(folder)
    spec = workdir.spec()
    enable_compilation_cache(spec.compilation_cache)
    assembly = Assembly(spec)
    stage = stage or exported_stage(assembly)
    if stage not in spec.stages:
        raise unknown("stage", stage, spec.stages, str(folder))
    params, batch_stats = results.stage_result(workdir, spec, stage, select, step)
    params, batch_stats = place(params, assembly.layout.params(params)), replicate(assembly.mesh, batch_stats)
    evaluators = Evaluators(assembly)
    validation = Validation(evaluators, stage) if spec.stages[stage].validation else None
    validated = validation.metrics(validation.outputs(params, batch_stats)) if validation else {}
    found = metric_lines(evaluators.scores(spec.stages[stage], params, batch_stats), validated)
    columns = ("stream", "metric", *(f"seed {seed}" for seed in spec.seeds), "mean")
    rows = [(label, name, *(f"{value:.4f}" for value in values), f"{np.mean(values):.4f}")
            for label, scores in found.items() for name, values in scores.items()]
    print_table(columns, rows, Console(), f"{spec.name}, stage {stage}")
    if out is not None:
        write_json(out, {label: {name: [float(v) for v in values] for name, values in scores.items()}
                         for label, scores in found.items()})
