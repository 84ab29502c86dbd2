"""Runs the stages of an experiment in order, leaves everything in the workdir, and goes on where it was stopped."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transfer_jax.core import processes
from transfer_jax.core.compilation import enable_compilation_cache
from transfer_jax.core.mesh import fetch, place, replicate
from transfer_jax.experiment import results
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.evaluators import Evaluators
from transfer_jax.experiment.low_rank_files import low_rank_start
from transfer_jax.experiment.parallel import in_groups, train_together
from transfer_jax.experiment.pretraining import with_pretrained
from transfer_jax.experiment.refitting import refit
from transfer_jax.experiment.spec import ExperimentSpec, StageSpec
from transfer_jax.experiment.stage import (
    ReadyStage,
    added_parameters,
    check_layout,
    fresh_variables,
    prepare,
    renew,
    total_steps,
)
from transfer_jax.experiment.stage_run import StageRun
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.params.initializers import redrawn
from transfer_jax.training.interruption import StopRequest
from transfer_jax.training.progress import Progress, output_console
from transfer_jax.training.state import Flat
from transfer_jax.training.writers import MetricWriter


class Runner:
    """One run of an experiment in a workdir."""

    def __init__(self, spec: ExperimentSpec, workdir: str | Path, *, allow_config_change: bool = False,
                 quiet: bool = False) -> None:
        enable_compilation_cache(spec.compilation_cache)
        self.spec = spec
        self.assembly = Assembly(spec)
        self.workdir = Workdir(workdir)
        processes.first_says(lambda: self.workdir.open(spec, allow_config_change))
        self.workdir.check_shared()
        self.quiet = quiet or not processes.primary()
        self._results: dict[str, tuple[Flat, Any]] = {}
        self.evaluators = Evaluators(self.assembly)

    def run(self, stop: StopRequest | None = None) -> None:
        """Trains what is not done yet. Raises `Interrupted` after a signal, with everything saved; `stop` is given
        where the caller has listened for one before."""
        names = list(self.spec.stages)
        steps = self.planned_steps()
        done = processes.first_says(lambda: [name for name in names if self.workdir.record(name) is not None])
        with (MetricWriter(self.workdir.path, enabled=processes.primary()) as writer,
              contextlib.nullcontext(stop) if stop else StopRequest() as stop,
              Progress(len(names), enabled=not self.quiet, total_steps=sum(steps.values())) as progress):
            # All are made ready first, so that a fault in the last stage shows before the first one trains.
            runs = {name: StageRun(self, name, before, writer, progress)
                    for before, name in zip([None, *names], names, strict=False) if name not in done}
            self._check_layout(runs)
            for group in in_groups(self.spec):
                stop.raise_if_asked()
                for name in group:
                    if name not in runs:
                        progress.skip_stage(self.spec.stages[name].title or name, steps[name])
                left = [runs.pop(name) for name in group if name in runs]
                if left:
                    train_together(self, left, progress, stop)

    def _check_layout(self, runs: Mapping[str, StageRun]) -> None:
        """Rules are for all stages: one that only a finished stage needs is no mistake of a run that goes on."""
        if self.spec.sharding is not None or self.spec.frozen_sharding is not None:
            ready = [runs[name].ready if name in runs else prepare(self.assembly, name) for name in self.spec.stages]
            check_layout(self.assembly.layout, ready)

    def planned_steps(self) -> dict[str, int]:
        """The length of every stage."""
        return {name: total_steps(stage, {stream: self.assembly.stream(stream) for stream in stage.objective.streams()}
                                  if stage.steps is None else {}) for name, stage in self.spec.stages.items()}

    @functools.cached_property
    def random(self) -> tuple[Flat, Any]:
        """Parameters and statistics drawn from the seeds, the same for every stage."""
        return fresh_variables(self.assembly)

    @functools.cached_property
    def fresh(self) -> tuple[Flat, Any]:
        """The same with pretrained ones where the config gives a source."""
        console = None if self.quiet else output_console()
        return with_pretrained(self.assembly, self.random, self.workdir, console)

    def start_variables(self, stage: StageSpec, ready: ReadyStage, before: str | None) -> tuple[Flat, Any]:
        """Parameters and statistics at the stage's start, with a member axis."""
        random, where = self.drawn(stage, f"config.stages.{ready.name}")[0], f"config.stages.{ready.name}"
        previous = {"previous": before or "fresh"}
        found = [self._source(stage, previous.get(init, init), ready) for init in stage.sources]
        params, stats = results.weighted([self.placed(source) for source in found], list(stage.sources.values()))
        params = {path: params[path] for path in (*random, *ready.inherited)}
        params = renew(params, random, stage.new, where)
        for number, component in enumerate(stage.refit):
            params, stats = refit(component, self.assembly, *self.placed((params, stats)), f"{where}.refit.{number}")
        params |= added_parameters(ready, params, self.spec.seeds)
        params |= low_rank_start(ready, params, self.assembly)
        return self.placed((params, stats))

    def placed(self, variables: tuple[Flat, Any]) -> tuple[Flat, Any]:
        """Parameters and statistics on the mesh."""
        params, stats = variables
        return place(params, self.assembly.layout.params(params)), replicate(self.assembly.mesh, stats)

    def drawn(self, stage: StageSpec, where: str) -> tuple[Flat, Any]:
        """`random`, with kernels drawn anew if the stage names an initializer."""
        params, stats = self.random
        if stage.initializer is None:
            return params, stats
        draw = jax.vmap(lambda leaves, seed: redrawn(stage.initializer, leaves, seed, f"{where}.initializer"))
        drawn = jax.jit(draw, out_shardings=self.assembly.layout.params(params))
        return drawn(params, np.asarray(self.spec.seeds, np.uint32)), stats

    def _source(self, stage: StageSpec, init: str, ready: ReadyStage) -> tuple[Flat, Any]:
        """Parameters and statistics that one word of `init` names."""
        random, random_stats = self.random
        where = f"config.stages.{ready.name}"
        if init in ("fresh", "random"):
            return self.fresh if init == "fresh" else self.drawn(stage, where)
        if init.startswith("checkpoint:"):
            skipped = frozenset(path for path, leaf in renew(random, dict.fromkeys(random), stage.new, where).items()
                                if leaf is None)
            shapes = {path: leaf for path, leaf in ready.shapes.items() if path in random or path in ready.inherited}
            one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), random_stats)
            params, stats = results.from_checkpoint(init.partition(":")[2], stage.select, shapes, one,
                                                    self.assembly.members, skipped)
            return {**{path: random[path] for path in skipped}, **params}, stats
        return self.result(init, stage.select)

    def result(self, stage: str, select: str) -> tuple[Flat, Any]:
        """What an earlier stage left: from memory, or from its checkpoint."""
        if select == "last" and stage in self._results:
            return self._results[stage]
        return results.stage_result(self.workdir, self.spec, stage, select)

    def keep(self, stage: str, variables: tuple[Flat, Any]) -> None:
        self._results[stage] = fetch(variables)
