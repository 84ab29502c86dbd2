"""Runs the stages of an experiment in order, leaves everything in the workdir, and goes on where it was stopped."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from transfer_jax.core.compilation import enable_compilation_cache
from transfer_jax.core.errors import UserError
from transfer_jax.evaluation.evaluator import Scores
from transfer_jax.experiment import results
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.caching import with_features
from transfer_jax.experiment.evaluators import Evaluators, labelled
from transfer_jax.experiment.low_rank_files import low_rank_start
from transfer_jax.experiment.measuring import Measuring
from transfer_jax.experiment.pretraining import with_pretrained
from transfer_jax.experiment.spec import ExperimentSpec, StageSpec
from transfer_jax.experiment.stage import ReadyStage, added_parameters, fresh_variables, prepare, renew, total_steps
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.params.initializers import redrawn
from transfer_jax.training.interruption import Interrupted, StopRequest
from transfer_jax.training.loop import Cadence, Hooks, train
from transfer_jax.training.mesh import replicate
from transfer_jax.training.progress import Progress, output_console, print_groups
from transfer_jax.training.state import Constants, Flat, State
from transfer_jax.training.step import feed_axes, metric_names
from transfer_jax.training.writers import MetricWriter


class Runner:
    """One run of an experiment in a workdir."""

    def __init__(self, spec: ExperimentSpec, workdir: str | Path, *, allow_config_change: bool = False,
                 quiet: bool = False) -> None:
        enable_compilation_cache(spec.compilation_cache)
        self.spec = spec
        self.assembly = Assembly(spec)
        self.workdir = Workdir(workdir)
        self.workdir.open(spec, allow_config_change)
        self.quiet = quiet
        self._results: dict[str, tuple[Flat, Any]] = {}
        self.evaluators = Evaluators(self.assembly)

    def run(self) -> None:
        """Trains what is not done yet. Raises `Interrupted` after a signal, with everything saved."""
        names = list(self.spec.stages)
        steps = self.planned_steps()
        with (MetricWriter(self.workdir.path) as writer, StopRequest() as stop,
              Progress(len(names), enabled=not self.quiet, total_steps=sum(steps.values())) as progress):
            # All are made ready first, so that a fault in the last stage shows before the first one trains.
            runs = {name: StageRun(self, name, before, writer, progress, stop)
                    for before, name in zip([None, *names], names, strict=False) if self.workdir.record(name) is None}
            for name in names:
                if stop.signal is not None:
                    raise Interrupted(stop.signal)
                if name not in runs:
                    progress.skip_stage(self.spec.stages[name].title or name, steps[name])
                    continue
                runs.pop(name).run()
                self.workdir.collect(names)

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
        params, stats = results.weighted(found, list(stage.sources.values()))
        params = {path: jnp.asarray(params[path]) for path in (*random, *ready.inherited)}
        params = renew(params, random, stage.new, where)
        params |= added_parameters(ready, params, self.spec.seeds)
        params |= low_rank_start(ready, params, self.assembly)
        return params, jax.tree.map(jnp.asarray, stats)

    def drawn(self, stage: StageSpec, where: str) -> tuple[Flat, Any]:
        """`random`, with kernels drawn anew if the stage names an initializer."""
        params, stats = self.random
        if stage.initializer is None:
            return params, stats
        draw = jax.vmap(lambda leaves, seed: redrawn(stage.initializer, leaves, seed, f"{where}.initializer"))
        return jax.jit(draw)(params, jnp.asarray(self.spec.seeds, jnp.uint32)), stats

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
        self._results[stage] = jax.device_get(variables)


@dataclass
class Begun:
    """A stage at its step 0: state, data, numbers that decide its draws, metrics, and how to measure the start."""

    state: State
    feeds: dict[str, Any]
    seeds: dict[str, Any]
    names: list[str]
    measure: Callable[[], dict[str, Any]]


class StageRun:
    """One stage of a run: prepare, resume or start, train, evaluate, record."""

    def __init__(self, runner: Runner, name: str, before: str | None, writer: MetricWriter, progress: Progress,
                 stop: StopRequest) -> None:
        self.runner, self.name, self.before = runner, name, before
        self.writer, self.progress, self.stop = writer, progress, stop
        self.spec = runner.spec.stages[name]
        self.ready = prepare(runner.assembly, name)
        self.groups = self.ready.table()  # made here so that a faulty optimizer or schedule shows before training
        self.checkpoints = runner.workdir.checkpoints(name, runner.spec.keep_checkpoints, progress.message)
        self.best: dict[str, Any] = {}
        self.constants = Constants({}, {}, {}, {}, {})
        self.seconds = 0.0
        self.averaged = self.spec.averaged
        self.measured: set[int] = set()  # steps whose scores an earlier process has logged
        check_selection(runner.spec, self.spec, f"config.stages.{name}")

    def begin(self) -> Begun:
        """The stage at its step 0; statistics of the start are blank until `measure_start`."""
        runner, program = self.runner, self.ready.program
        assembly = runner.assembly
        params, batch_stats = runner.start_variables(self.spec, self.ready, self.before)
        feeds = {name: feed for name in program.streams if (feed := assembly.feed(name)) is not None}
        seeds = self.ready.seeds(runner.spec.seeds)
        measuring = Measuring(assembly, self.ready)
        unknown = measuring.shapes(params, batch_stats)
        self.ready, feeds, notes = with_features(self.ready, assembly, params, batch_stats, feeds)
        for note in notes:
            self.progress.message(note)
        names = self._metric_names(params, batch_stats, unknown, feeds, seeds)
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), unknown)
        state, self.constants = self.ready.start(params, batch_stats, len(names), assembly.members, blank)
        return Begun(state, feeds, seeds, names, lambda: measuring.values(params, batch_stats))

    def measure_start(self, begun: Begun) -> None:
        """Measures what terms have to know of the start."""
        self.constants = self.constants._replace(statistics=begun.measure())

    def run(self) -> None:
        """Trains what is left of the stage and records its result."""
        runner, assembly = self.runner, self.runner.assembly
        begun = self.begin()
        program = self.ready.program
        if self.spec.best:
            self.best = results.start_best(assembly.members, begun.state.trainable, begun.state.batch_stats)
        step, state = self._resume(begun.state)
        if step == 0:
            self.measure_start(begun)
        self._show_groups()
        self.progress.start_stage(self.spec.title or self.name, program.total_steps, step)
        self._began = time.monotonic()
        if step < program.total_steps:
            state = train(program, *replicate(assembly.mesh, (state, self.constants)), begun.feeds, begun.seeds, step,
                          begun.names,
                          Cadence(runner.spec.log_every, self.spec.eval_every, runner.spec.checkpoint_every),
                          self._hooks(), self.stop, runner.spec.steps_per_dispatch)
            self.seconds += time.monotonic() - self._began
            self._began = time.monotonic()
        self._finish(state)
        self.progress.end_stage()

    def _metric_names(self, params: Flat, batch_stats: Any, statistics: Any, feeds: Mapping[str, Any],
                      seeds: Any) -> list[str]:
        program = self.ready.program
        if not program.updates:
            return ["loss"]
        state, constants = jax.eval_shape(lambda *start: self.ready.start(*start[:2], 1, self.runner.assembly.members,
                                                                          start[2]), params, batch_stats, statistics)
        axes = feed_axes(program)
        shapes = {name: feeds[name] if name in feeds else next(program.streams[name].host_batches(0)) for name in axes}
        one = {name: jax.tree.map(lambda axis, part: part if axis is None else _without_member(part), axes[name],
                                  shapes[name], is_leaf=lambda axis: axis is None) for name in axes}
        return metric_names(program, *_without_member((state, constants)), one, _without_member(seeds))

    def _resume(self, state: State) -> tuple[int, State]:
        target = jax.eval_shape(lambda: results.checkpoint_tree(state, self.constants, self.best))
        found = self.checkpoints.restore(target)
        finished = [stage for stage in self.runner.spec.stages if self.runner.workdir.record(stage) is not None]
        if found is None:
            self.writer.rewind(self.name, -1, finished)
            return 0, state
        step, tree, meta = found
        self.seconds, self.best = meta["seconds"], tree["best"]
        self.constants = jax.tree.map(jnp.asarray, Constants(**tree["constants"]))
        self.writer.rewind(self.name, step, finished)
        if step == self.ready.program.total_steps:
            self.measured = {step}  # the last checkpoint is saved after the last scores are logged
        self.progress.message(f"{self.name}: continuing after step {step}")
        return step, jax.tree.map(jnp.asarray, State(**tree["state"]))

    def _show_groups(self) -> None:
        rows, title = self.groups, f"stage {self.name}"
        if not self.runner.quiet:
            print_groups(rows, self.progress.console, title)
        path = self.runner.workdir.path / "params.txt"
        old = path.read_text() if path.is_file() else ""
        if f"{title}\n" not in old:
            text = io.StringIO()
            print_groups(rows, Console(file=text, width=120), title)
            path.write_text(old + "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n\n")

    def _hooks(self) -> Hooks:
        return Hooks(log=lambda step, means: self.writer.write(self.name, step, "train", means),
                     evaluate=self._measure, save=self._save,
                     advance=lambda count, loss: self.progress.advance(count, loss=loss))

    def _save(self, step: int, state: State) -> None:
        self.writer.flush()
        now = time.monotonic()
        self.seconds, self._began = self.seconds + now - self._began, now
        tree = jax.device_get(results.checkpoint_tree(state, self.constants, self.best))
        self._check_sound(step, tree["state"]["trainable"])
        self.checkpoints.save(step, tree, {"seconds": self.seconds})

    def _check_sound(self, step: int, params: Mapping[str, np.ndarray]) -> None:
        """A loss tells of bad parameters one step late: without this the last checkpoint could hold them."""
        for path, leaf in params.items():
            if not np.isfinite(leaf).all():
                raise UserError(f"stage {self.name!r}: the parameter {path!r} became NaN or infinite by step {step}; "
                                f"the last checkpoint before it is kept; try a smaller lr or set clip_norm")

    def _variables(self, state: State, average: bool) -> tuple[Flat, Any]:
        tree = results.checkpoint_tree(state, self.constants, self.best)
        return results.variables_of(tree, "last", average, self.name)

    def _measure(self, step: int, state: State, examples: bool = False) -> dict[str, Scores]:
        """Scores the stage's result as it stands (and, beside a moving average, the other variables), logs it, and
        keeps it if it is the best so far."""
        variables = self._variables(state, self.averaged)
        found = self._scores(variables, examples)
        if self.spec.ema or self.spec.schedule_free:
            prefix = "raw_" if self.averaged else "ema_"
            for label, scores in self._scores(self._variables(state, not self.averaged)).items():
                found[label].metrics |= {prefix + key: value for key, value in scores.metrics.items()}
        if step and step not in self.measured:
            for label, scores in found.items():
                self.writer.write(self.name, step, "eval", scores.metrics, stream=label)
        if self.spec.best:
            params, batch_stats = jax.device_get(variables)
            self.best = results.better(self.best, self.spec.best, self._declared(found), step, params, batch_stats)
        return found

    def _declared(self, found: Mapping[str, Scores]) -> np.ndarray:
        best = self.spec.best
        for label, scores in found.items():
            if label.split("/")[0] == best.stream and best.metric in scores.metrics:
                return scores.metrics[best.metric]
        raise UserError(f"config.stages.{self.name}.best: stream {best.stream!r} gives no metric {best.metric!r}; it "
                        f"gives {', '.join(sorted({key for s in found.values() for key in s.metrics}))}")

    def _scores(self, variables: tuple[Flat, Any], examples: bool = False) -> dict[str, Scores]:
        return self.runner.evaluators.scores(self.spec, *results.with_peft(self.spec.peft, variables), examples)

    def _finish(self, state: State) -> None:
        runner, steps = self.runner, self.ready.program.total_steps
        rows = self._rows(self._measure(steps, state, examples=True), "last", predictions=True)
        if self.best:
            tree = results.checkpoint_tree(state, self.constants, self.best)
            found = self._scores(results.variables_of(tree, "best", False, self.name))
            rows += self._rows(found, "oracle" if self.spec.best.oracle else "best")
        self._save(steps, state)
        runner.keep(self.name, results.with_peft(self.spec.peft, self._variables(state, self.averaged)))
        runner.workdir.finish(self.name, self._info(), rows)

    def _rows(self, found: Mapping[str, Scores], selection: str, predictions: bool = False) -> list[dict[str, Any]]:
        assembly, rows = self.runner.assembly, []
        for label, scores in found.items():
            stream, task = labelled(self.spec)[label]
            classes, open_stream = assembly.class_names(task), assembly.stream(stream)
            rows.append(results.result_row(self.name, self.spec, label, selection, scores, classes))
            if predictions:
                path = self.runner.workdir.path / "predictions" / self.name / f"{label.replace('/', '.')}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(path, **results.prediction_file(open_stream, scores))
        return rows

    def _info(self) -> dict[str, Any]:
        groups = self.groups
        streams = {**self.ready.program.streams,
                   **{stream: self.runner.assembly.stream(stream) for stream in self.spec.evaluate}}
        return {"title": self.spec.title or self.name, "tags": self.spec.tags, "seconds": round(self.seconds, 3),
                "steps": self.ready.program.total_steps, "init": self.spec.init, "select": self.spec.select,
                "trainable": sum(row["parameters"] for row in groups if not row["frozen"]),
                "total": sum(row["parameters"] for row in groups),
                "optimizer_bytes": sum(row["optimizer_bytes"] for row in groups), "groups": groups, "notes": [],
                "skipped_examples": {name: len(stream.ledger) for name, stream in streams.items() if stream.ledger}}


def check_selection(spec: ExperimentSpec, stage: StageSpec, where: str) -> None:
    """Labels of an unsupervised target must not choose the parameters, unless the config says so."""
    if stage.best is None or stage.best.oracle:
        return
    chosen = spec.streams[stage.best.stream]
    unlabelled = [name for name in stage.objective.streams() if not spec.streams[name].labelled]
    for name in unlabelled:
        if spec.streams[name].domain == chosen.domain:
            raise UserError(f"{where}.best chooses by labels of stream {stage.best.stream!r}, whose domain "
                            f"{chosen.domain!r} is unlabelled in training ({name!r}); choose by a source stream, or "
                            f"set best.oracle=True to report it as an oracle")


def _without_member(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
