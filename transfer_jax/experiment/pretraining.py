"""Pretrained parameters in the place of random ones, for every backbone that the config gives a source."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

from transfer_jax.core import processes
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.pretrained.conversion import HEAD, STATISTICS
from transfer_jax.pretrained.loading import load, provenance
from transfer_jax.pretrained.report import LoadError
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.progress import output_console
from transfer_jax.training.state import Flat

RECORD = "pretrained.json"


def with_pretrained(assembly: Assembly, random: tuple[Flat, Any], workdir: Workdir | None,
                    console: Console | None) -> tuple[Flat, Any]:
    """Parameters (flat) and statistics (nested), both with a member axis, with what the sources give in their places,
    as numpy arrays.

    Prints the load report of every source on `console` and keeps it in the workdir, if there is one. A source that does
    not fit is reported before its error is raised.
    """
    if not assembly.spec.pretrained:
        return random
    params, stats = dict(random[0]), dict(flatten(random[1]))
    records = {}
    for name, spec in assembly.spec.pretrained.items():
        head = assembly.model.heads[spec.head] if spec.head else None
        try:
            loaded = load(spec, assembly.model.backbones[name], head, assembly.example_inputs[name],
                          assembly.words(name))
        except LoadError as error:
            (console or output_console()).print(error.report.table())
            raise
        if console is not None:
            console.print(loaded.report.table())
        for path, leaf in loaded.leaves.items():
            ours = f"heads/{spec.head}/{path.removeprefix(HEAD)}" if path.startswith(HEAD) else f"{name}/{path}"
            tree = stats if path.rpartition("/")[2] in STATISTICS and ours in stats else params
            tree[ours] = np.broadcast_to(leaf, (assembly.members, *leaf.shape))
        records[name] = provenance(loaded, spec)
    if workdir is not None and processes.primary():
        write_json(workdir.path / RECORD, records)
    return params, unflatten(stats)
