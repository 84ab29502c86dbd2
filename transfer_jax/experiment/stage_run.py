"""One stage of a run: prepare, resume or start, train (alone or with others), evaluate, record."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from transfer_jax.core import processes
from transfer_jax.core.errors import UserError
from transfer_jax.core.mesh import fetch
from transfer_jax.evaluation.evaluator import Scores
from transfer_jax.experiment import results
from transfer_jax.experiment.caching import with_features
from transfer_jax.experiment.evaluators import labelled
from transfer_jax.experiment.measuring import Measuring
from transfer_jax.experiment.spec import ExperimentSpec, StageSpec
from transfer_jax.experiment.stage import names_of_metrics, prepare
from transfer_jax.experiment.validation import Validation, metric_lines
from transfer_jax.training.checkpoint import WHOLE
from transfer_jax.training.lane import Cadence, Hooks, Lane
from transfer_jax.training.progress import Progress, print_groups
from transfer_jax.training.state import Constants, Flat, State
from transfer_jax.training.writers import MetricWriter

if TYPE_CHECKING:
    from transfer_jax.experiment.runner import Runner


@dataclass
class Begun:
    """A stage at its step 0: state, data, numbers that decide its draws, metrics, and how to measure statistics."""

    state: State
    feeds: dict[str, Any]
    seeds: dict[str, Any]
    names: list[str]
    measuring: Measuring


class StageRun:
    """One stage of a run: `enter` prepares it and resumes or starts, the loop trains it, and at its last step it is
    evaluated and recorded."""

    def __init__(self, runner: Runner, name: str, before: str | None, writer: MetricWriter, progress: Progress) -> None:
        self.runner, self.name, self.before = runner, name, before
        self.writer, self.progress = writer, progress
        self.spec = runner.spec.stages[name]
        self.ready = prepare(runner.assembly, name)
        self.groups = self.ready.table()  # made here so that a faulty optimizer or schedule shows before training
        self.checkpoints = runner.workdir.checkpoints(name, runner.spec.keep_checkpoints, progress.message)
        self.best: dict[str, Any] = {}
        self.constants = Constants({}, {}, {}, {}, {})
        self.seconds = 0.0
        self.beside: set[str] = set()  # stages that trained in parallel with it: its seconds are theirs, too
        self.averaged = self.spec.averaged
        self.measured: set[int] = set()  # steps whose scores an earlier process has logged
        check_selection(runner.spec, self.spec, f"config.stages.{name}")
        self.validation = Validation(runner.evaluators, name) if self.spec.validation else None

    def begin(self) -> Begun:
        """The stage at its step 0; statistics of the start are blank until `measure`."""
        runner, program = self.runner, self.ready.program
        assembly = runner.assembly
        params, batch_stats = runner.start_variables(self.spec, self.ready, self.before)
        batch_stats = self.ready.own_statistics(batch_stats)
        feeds = {name: feed for name in program.streams if (feed := assembly.feed(name)) is not None}
        seeds = self.ready.seeds(runner.spec.seeds)
        measuring = Measuring(assembly, self.ready, functools.partial(results.stage_statistics, runner.workdir))
        unknown = measuring.shapes(params, batch_stats)
        self.ready, feeds, notes = with_features(self.ready, assembly, params, batch_stats, feeds)
        for note in notes:
            self.progress.message(note)
        names = names_of_metrics(self.ready, (params, batch_stats), unknown, feeds, seeds)
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), unknown)
        state, self.constants = self.ready.start(params, batch_stats, len(names), assembly.members, blank)
        return Begun(state, feeds, seeds, names, measuring)

    def measure(self, measuring: Measuring, state: State, renewed: bool = False) -> Constants:
        """The constants with what terms have to know of the start, or of the model as it is."""
        found = measuring.values({**self.constants.frozen, **state.trainable}, state.batch_stats, renewed)
        self.constants = self.constants._replace(statistics={**self.constants.statistics, **found})
        return self.constants

    def enter(self, advance: Callable[[int, float], None]) -> Lane:
        """The stage where an earlier process left it, or at its step 0, ready to train; `advance`: see `Hooks`."""
        runner, assembly = self.runner, self.runner.assembly
        begun = self.begin()
        program = self.ready.program
        if self.spec.best:
            self.best = results.start_best(assembly.members, begun.state.trainable, begun.state.batch_stats)
        step, state = self._resume(begun.state)
        if step == 0:
            self.measure(begun.measuring, state)
        self._show_groups()
        state, self.constants = self.ready.placed(state, self.constants)
        self.start_clock()
        if self.validation and step == 0 < program.total_steps:
            self._measure(0, state)
            self._stop_clock()
        cadence = Cadence(runner.spec.log_every, self.spec.eval_every, runner.spec.checkpoint_every,
                          self.spec.measure_every)
        return Lane(self.name, program, state, self.constants, begun.feeds, begun.seeds, begun.names, cadence,
                    self._hooks(begun, advance), step)

    def start_clock(self) -> None:
        """What comes counts as seconds of the stage."""
        self._began = time.monotonic()

    def _stop_clock(self) -> None:
        now = time.monotonic()
        self.seconds, self._began = self.seconds + now - self._began, now

    def _resume(self, state: State) -> tuple[int, State]:
        target = jax.eval_shape(lambda: results.checkpoint_tree(state, self.constants, self.best))
        state_places, constant_places = self.ready.shardings(state, self.constants)
        places = {"state": state_places._asdict(), "constants": constant_places._asdict(),
                  "best": jax.tree.map(lambda _: WHOLE, target["best"])}
        found = self.checkpoints.restore(target, shardings=places)
        # Those that train beside this one have begun, too, and take care of their own lines.
        begun = [stage for stage in self.runner.spec.stages if self.runner.workdir.has_begun(stage)]
        if found is None:
            self.writer.rewind(self.name, -1, begun)
            return 0, state
        step, tree, meta = found
        self.seconds, self.best = meta["seconds"], tree["best"]
        self.beside.update(meta.get("beside", ()))
        self.constants = Constants(**tree["constants"])
        self.writer.rewind(self.name, step, begun)
        if step == self.ready.program.total_steps:
            self.measured = {step}  # the last checkpoint is saved after the last scores are logged
        self.progress.message(f"{self.name}: continuing after step {step}")
        return step, State(**tree["state"])

    def _show_groups(self) -> None:
        rows, title = self.groups, f"stage {self.name}"
        if not self.runner.quiet:
            print_groups(rows, self.progress.console, title)
        if not processes.primary():
            return
        path = self.runner.workdir.path / "params.txt"
        old = path.read_text() if path.is_file() else ""
        if f"{title}\n" not in old:
            text = io.StringIO()
            print_groups(rows, Console(file=text, width=120), title)
            path.write_text(old + "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n\n")

    def _hooks(self, begun: Begun, advance: Callable[[int, float], None]) -> Hooks:
        return Hooks(log=lambda step, means: self.writer.write(self.name, step, "train", means),
                     evaluate=self._measure, save=self._save, advance=advance,
                     measure=lambda step, state: self._measure_anew(begun.measuring, state), end=self.finish)

    def _measure_anew(self, measuring: Measuring, state: State) -> Constants:
        self.measure(measuring, state, renewed=True)
        self.constants = self.ready.placed(state, self.constants)[1]
        return self.constants

    def _save(self, step: int, state: State) -> None:
        self.writer.flush()
        self._stop_clock()
        self._check_sound(step, state.trainable)
        self.checkpoints.save(step, results.checkpoint_tree(state, self.constants, self.best),
                              {"seconds": self.seconds, "beside": sorted(self.beside)})

    def _check_sound(self, step: int, params: Flat) -> None:
        """A loss tells of bad parameters one step late: without this the last checkpoint could hold them."""
        for path, good in jax.device_get(_finite(params)).items():
            if not good:
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
        validated = self._validate(step, variables)
        if (step or self.validation) and step not in self.measured:
            for label, metrics in metric_lines(found, validated).items():
                self.writer.write(self.name, step, "eval", metrics, stream=label)
        if self.spec.best and (step or not self.ready.program.total_steps):  # what comes before training is no choice
            params, batch_stats = fetch(variables)
            declared = self._declared(found, validated)
            self.best = results.better(self.best, self.spec.best, declared, step, params, batch_stats)
        return found

    def _validate(self, step: int, variables: tuple[Flat, Any]) -> dict[str, dict[str, np.ndarray]]:
        """Target stream -> scores of its validators; keeps the features before and after for the report."""
        if self.validation is None:
            return {}
        outputs = self.validation.outputs(*results.with_peft(self.spec.peft, variables))
        moments = {0: "start", self.ready.program.total_steps: "end"}
        if step in moments:
            self.validation.keep(outputs, self.runner.workdir.path / "predictions" / self.name, moments[step])
        return self.validation.metrics(outputs)

    def _declared(self, found: Mapping[str, Scores], validated: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
        best = self.spec.best
        if best.by_validator:
            return validated[best.stream][best.metric]
        for label, scores in found.items():
            if label.split("/")[0] == best.stream and best.metric in scores.metrics:
                return scores.metrics[best.metric]
        raise UserError(f"config.stages.{self.name}.best: stream {best.stream!r} gives no metric {best.metric!r}; it "
                        f"gives {', '.join(sorted({key for s in found.values() for key in s.metrics}))}")

    def _scores(self, variables: tuple[Flat, Any], examples: bool = False) -> dict[str, Scores]:
        return self.runner.evaluators.scores(self.spec, *results.with_peft(self.spec.peft, variables), examples)

    def finish(self, steps: int, state: State) -> None:
        """Evaluates and records what the stage has become after its last step."""
        runner = self.runner
        self._stop_clock()
        rows = self._rows(self._measure(steps, state, examples=True), "last", predictions=True)
        if self.best:
            tree = results.checkpoint_tree(state, self.constants, self.best)
            found = self._scores(results.variables_of(tree, "best", False, self.name))
            rows += self._rows(found, "oracle" if self.spec.best.oracle else "best")
        self._save(steps, state)
        runner.keep(self.name, results.with_peft(self.spec.peft, self._variables(state, self.averaged)))
        self.checkpoints.wait()
        if processes.primary():
            runner.workdir.finish(self.name, self._info(), rows)
            runner.workdir.collect(list(runner.spec.stages))
        self.writer.end_stage(self.name, list(runner.spec.stages))
        processes.barrier(f"end of stage {self.name}")

    def _rows(self, found: Mapping[str, Scores], selection: str, predictions: bool = False) -> list[dict[str, Any]]:
        assembly, rows = self.runner.assembly, []
        for label, scores in found.items():
            stream, task = labelled(self.spec)[label]
            classes, open_stream = assembly.class_names(task), assembly.stream(stream)
            rows.append(results.result_row(self.name, self.spec, label, selection, scores, classes))
            if predictions and processes.primary():
                path = self.runner.workdir.path / "predictions" / self.name / f"{label.replace('/', '.')}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(path, **results.prediction_file(open_stream, scores))
        return rows

    def _info(self) -> dict[str, Any]:
        groups = self.groups
        streams = {**self.ready.program.streams,
                   **{stream: self.runner.assembly.stream(stream)
                      for stream in (*self.spec.evaluate, *(self.validation.streams if self.validation else ()))}}
        return {"title": self.spec.title or self.name, "tags": self.spec.tags, "seconds": round(self.seconds, 3),
                "beside": sorted(self.beside), "steps": self.ready.program.total_steps, "init": self.spec.init,
                "select": self.spec.select,
                "trainable": sum(row["parameters"] for row in groups if not row["frozen"]),
                "total": sum(row["parameters"] for row in groups),
                "optimizer_bytes": sum(row["optimizer_bytes"] for row in groups), "groups": groups, "notes": [],
                "skipped_examples": {name: len(stream.ledger) for name, stream in streams.items() if stream.ledger}}


@jax.jit
def _finite(leaves: Flat) -> Flat:
    """Path -> whether all of the leaf is finite."""
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), leaves)


def check_selection(spec: ExperimentSpec, stage: StageSpec, where: str) -> None:
    """Labels of an unsupervised target must not choose the parameters, unless the config says so."""
    if stage.best is None or stage.best.oracle or stage.best.by_validator:
        return
    chosen = spec.streams[stage.best.stream]
    unlabelled = [name for name in stage.objective.streams() if not spec.streams[name].labelled]
    targets = stage.validation.targets if stage.validation else ()
    for name in (*unlabelled, *targets):
        if spec.streams[name].domain == chosen.domain:
            why = "is unlabelled in training" if name in unlabelled else "is a target of validation"
            raise UserError(f"{where}.best chooses by labels of stream {stage.best.stream!r}, whose domain "
                            f"{chosen.domain!r} {why} ({name!r}); choose by a source stream or a validator, or "
                            f"set best.oracle=True to report it as an oracle")
