"""From a specification to open streams, class names and the model: what all stages of an experiment share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.inputs import MISSING, FromTaps, from_taps
from transfer_jax.core.mesh import make_mesh, replicate
from transfer_jax.core.spec import Component, lookup
from transfer_jax.data import open_stream
from transfer_jax.evaluation import METRICS
from transfer_jax.evaluation.validators import usable
from transfer_jax.experiment.parallel import check_parallel
from transfer_jax.experiment.spec import ExperimentSpec, StageSpec, ValidationSpec
from transfer_jax.experiment.staying import all_methods
from transfer_jax.models import HEADS
from transfer_jax.models.model import Model, build_model
from transfer_jax.params.inserts import Outline, make_insert, outline_of
from transfer_jax.tasks import TASKS, head_outputs
from transfer_jax.training.sharding import Layout
from transfer_jax.training.writers import VALIDATED

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Assembly:
    """Streams, placed data, class names and the model of an experiment, each made when first asked for."""

    def __init__(self, spec: ExperimentSpec) -> None:
        check_names(spec)
        self.spec = spec
        self.members = len(spec.seeds)
        self._streams: dict[str, Any] = {}
        self._feeds: dict[str, Any] = {}

    @functools.cached_property
    def mesh(self) -> Mesh:
        return make_mesh(self.spec.mesh)

    @functools.cached_property
    def layout(self) -> Layout:
        """Where parameters lie on the mesh."""
        return Layout(self.mesh, self.spec.sharding, self.spec.frozen_sharding)

    def stream(self, name: str) -> Any:
        """The open stream of this name."""
        if name not in self._streams:
            self._streams[name] = open_stream(name, self.spec.streams[name], self.spec.seeds)
            self._check_words(name)
            if self.spec.streams[name].follows is not None:
                self._check_follows(name)
        return self._streams[name]

    def words(self, backbone: str) -> tuple[str, ...]:
        """What the numbers of the tokens that a backbone reads stand for; () where no data tell."""
        feeding = [name for name, spec in self.spec.streams.items()
                   if backbone in spec.inputs and from_taps(spec.inputs[backbone]) is None]
        return self.stream(feeding[0]).dataset.words if feeding else ()

    def _check_words(self, name: str) -> None:
        """All texts that a backbone reads have to number their words alike, and it needs a row for each."""
        words, inputs = self.stream(name).dataset.words, self.spec.streams[name].inputs
        for backbone in (part for part, source in inputs.items() if from_taps(source) is None):
            for other, stream in self._streams.items():
                if backbone in stream.spec.inputs and stream.dataset.words != words:
                    raise UserError(f"the streams {other!r} and {name!r} both feed the backbone {backbone!r}, but "
                                    f"number their words differently; give their data the same words_file")
            arguments = self.spec.model.backbones[backbone].arguments
            if len(words) > arguments.get("vocabulary", len(words)):
                raise UserError(f"config.model.backbones.{backbone}: the data of {name!r} number {len(words)} words, "
                                f"more than vocabulary={arguments['vocabulary']}; give as many or more")

    def _check_follows(self, name: str) -> None:
        """Two views of the same examples need the same examples."""
        other, where = self.spec.streams[name].follows, f"config.streams.{name}.follows"
        _known("stream", other, self.spec.streams, where)
        if self.spec.streams[other].follows is not None:
            raise UserError(f"{where}: {other!r} follows {self.spec.streams[other].follows!r} itself; name that one")
        mine, theirs = self.stream(name), self.stream(other)
        same = ((mine.spec.data, mine.spec.split, mine.spec.mix, mine.spec.batch_size)
                == (theirs.spec.data, theirs.spec.split, theirs.spec.mix, theirs.spec.batch_size)
                and np.array_equal(mine.indices, theirs.indices))
        if not same:
            raise UserError(f"{where}: {name!r} and {other!r} differ in their examples or batch sizes; give them the "
                            f"same data, split, selection, mix and batch_size")

    def feed(self, name: str) -> Any:
        """The stream's data, placed on the devices once for all stages; None for a stream from the host."""
        if name not in self._feeds:
            feed = self.stream(name).feed()
            self._feeds[name] = None if feed is None else replicate(self.mesh, feed)
        return self._feeds[name]

    def keep_feed(self, name: str, feed: Any) -> None:
        """Gives the stream these data from now on: shapes, where nothing will run."""
        self._feeds[name] = feed

    def task_streams(self, task: str) -> list[str]:
        """The streams whose labels the task's loss or evaluation reads, in order of first use."""
        names: dict[str, None] = {}
        first = self.spec.tasks[task].class_names_from
        names.update({first: None} if first else {})
        for stage in self.spec.stages.values():
            for update in stage.objective.ordered:
                for term in update.terms.values():
                    if term.task == task and term.kind == "task":
                        names.update(dict.fromkeys(term.roles.values()))
            names.update({stream: None for stream, tasks in stage.evaluate.items() if task in as_tuple(tasks)})
        return list(names)

    @functools.cache  # noqa: B019 - an assembly lives as long as its process
    def class_names(self, task: str) -> tuple[str, ...]:
        """Class names of the task; all streams that it is used on must agree on them."""
        streams = self.task_streams(task)
        kind = TASKS[self.spec.tasks[task].kind]
        if not kind.has_classes or not streams:
            return ()
        found = {name: tuple(getattr(self.stream(name), kind.names)) for name in streams}
        first = found[streams[0]]
        for name, classes in found.items():
            if classes != first:
                raise UserError(f"task {task!r}: stream {name!r} has the classes {_short(classes)}, but stream "
                                f"{streams[0]!r} has {_short(first)}; choose the same with 'classes' or use two tasks")
        return first

    def num_classes(self, task: str) -> int:
        try:
            return head_outputs(self.spec.tasks[task], self.class_names(task))
        except UserError as error:
            streams = ", ".join(map(repr, self.task_streams(task)))
            used = f"its streams: {streams}" if streams else "no stage trains or evaluates it"
            raise UserError(f"task {task!r} ({used}): {error}") from error

    @functools.cached_property
    def sized_heads(self) -> dict[str, Component]:
        """All heads, with the class counts of those that answer a task filled in from the data."""
        heads, answers = dict(self.spec.model.heads), {}
        for name, task in self.spec.tasks.items():
            other, size = answers.setdefault(task.head, (name, self.num_classes(name)))
            if size != self.num_classes(name):
                raise UserError(f"the head {task.head!r} cannot answer both tasks {other!r} and {name!r}, which need "
                                f"{size} and {self.num_classes(name)} outputs; give each a head of its own")
            heads[task.head] = self._sized(self.spec.model.heads[task.head], name)
        return heads

    @functools.cached_property
    def model(self) -> Model:
        model = build_model(self.spec.model, self.sized_heads, DTYPES[self.spec.precision])
        inserts = {name: make_insert(method, f"peft.{name}") for name, method in all_methods(self.spec).items()}
        return dataclasses.replace(model, inserts=inserts)

    @functools.cached_property
    def outlines(self) -> dict[str, Outline]:
        """What the backbones compute, for methods that insert something into them."""
        return {name: outline_of(backbone, self.example_inputs[name]) for name, backbone in self.model.backbones.items()
                if name in self.example_inputs and not isinstance(self.example_inputs[name], FromTaps)}

    def _sized(self, head: Component, task: str) -> Component:
        parameters = inspect.signature(lookup(HEADS, head.kind, "head", f"model.heads of task {task!r}")).parameters
        size = "classes" if "classes" in parameters else "outputs"
        if size in head.arguments and head.arguments[size] != self.num_classes(task):
            raise UserError(f"head {self.spec.tasks[task].head!r} has {size}={head.arguments[size]}, but its task "
                            f"{task!r} needs {self.num_classes(task)}; leave {size!r} out")
        return Component(kind=head.kind, **{**head.arguments, size: self.num_classes(task)})

    @functools.cached_property
    def example_inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One input for every backbone, such as [1, H, W, C], shaped as the first stream that feeds it; or the taps
        that it reads, where several streams differ the most. Backbones come behind those whose taps they read."""
        def given(found: Any) -> int:
            return sum(name != MISSING for name in found.names) if isinstance(found, FromTaps) else found is not None

        inputs: dict[str, Any] = {}
        for name, spec in self.spec.streams.items():
            for backbone, source in spec.inputs.items():
                found = from_taps(source)
                if backbone not in inputs and found is None:
                    shape, dtype = self.stream(name).example_shapes[source]
                    inputs[backbone] = jax.ShapeDtypeStruct((1, *shape), dtype)
                elif found is not None and given(found) > given(inputs.get(backbone)):
                    inputs[backbone] = found
        return in_order(inputs)

    @functools.cached_property
    def variable_shapes(self) -> Any:
        """Shapes and dtypes of all variables of the model, of one seed."""
        return jax.eval_shape(lambda key: self.model.init(key, self.example_inputs), jax.random.key(0))


def as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def check_names(spec: ExperimentSpec) -> None:
    """Raises for a name of a stream, task, head, backbone or stage that does not exist."""
    for name in spec.model.backbones:
        if name in ("heads", "objective") or "/" in name:
            raise UserError(f"config.model.backbones: {name!r} cannot name a backbone: other parameters start "
                            f"with it; choose another name")
    for name, pretrained in spec.pretrained.items():
        _known("backbone", name, spec.model.backbones, "config.pretrained")
        if pretrained.head is not None:
            _known("head", pretrained.head, spec.model.heads, f"config.pretrained.{name}")
    for name, task in spec.tasks.items():
        _known("head", task.head, spec.model.heads, f"config.tasks.{name}")
        if task.class_names_from:
            _known("stream", task.class_names_from, spec.streams, f"config.tasks.{name}")
        for metric in task.metrics:
            _known("metric", metric, METRICS, f"config.tasks.{name}.metrics")
    for name in spec.streams:
        _check_inputs(spec, name, f"config.streams.{name}.inputs")
    before: list[str] = []
    for name, stage in spec.stages.items():
        _check_stage(spec, f"config.stages.{name}", stage, before)
        before.append(name)
    check_parallel(spec)
    if spec.export is not None:
        _known("stage", spec.export, spec.stages, "config.export")
    for stream in spec.report.streams:
        _known("stream", stream, spec.streams, "config.report.streams")


def _check_inputs(spec: ExperimentSpec, stream: str, where: str) -> None:
    """Raises unless every backbone that is fed exists, and taps are those of backbones named before."""
    before: list[str] = []
    for backbone, source in spec.streams[stream].inputs.items():
        _known("backbone", backbone, spec.model.backbones, where)
        found = from_taps(source)
        for part in found.parts if found is not None else ():
            if part not in before:
                raise UserError(f"{where}.{backbone} reads taps of {part!r}, which is not named before it (there are "
                                f"{', '.join(before) or 'none'}); put it in front")
        if found is not None and not found.parts:
            raise UserError(f"{where}.{backbone} reads nothing at all; name a tap, as in 'backbone/pooled'")
        before.append(backbone)


def in_order(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with those that read taps behind the parts whose taps they read."""
    found: dict[str, Any] = {}
    waiting = dict(inputs)
    while waiting:
        ready = [name for name, value in waiting.items()
                 if not isinstance(value, FromTaps) or all(part in found for part in value.parts)]
        if not ready:
            raise UserError(f"the backbones {', '.join(waiting)} read each other's taps in a circle, or taps of one "
                            f"that no stream feeds; see 'inputs' of the streams")
        found |= {name: waiting.pop(name) for name in ready}
    return found


def _check_stage(spec: ExperimentSpec, where: str, stage: StageSpec, before: list[str]) -> None:
    for init in stage.sources:
        if init not in ("fresh", "random", "previous") and not init.startswith("checkpoint:"):
            _known("stage", init, [*before, "fresh", "random", "previous", "checkpoint:WORKDIR"], f"{where}.init")
        source = before[-1] if init == "previous" and before else init
        if stage.select == "best" and source in before and spec.stages[source].best is None:
            raise UserError(f"{where}.select is 'best', but stage {source!r} keeps no best parameters; set its 'best'")
    for stream in stage.objective.streams():
        _known("stream", stream, spec.streams, f"{where}.objective")
    for update in stage.objective.ordered:
        for term in update.terms.values():
            if term.head:
                _known("head", term.head, spec.model.heads, f"{where}.objective")
            if term.measured_on:
                _known("stream", term.measured_on, spec.streams, f"{where}.objective")
    for stream, tasks in stage.evaluate.items():
        _known("stream", stream, spec.streams, f"{where}.evaluate")
        for task in as_tuple(tasks):
            _known("task", task, spec.tasks, f"{where}.evaluate.{stream}")
            if not spec.streams[stream].labelled and not TASKS[spec.tasks[task].kind].unlabelled:
                raise UserError(f"{where}.evaluate: the stream {stream!r} is set to labelled=False; evaluate on a "
                                f"labelled stream")
    if stage.validation is not None:
        _check_validation(spec, f"{where}.validation", stage.validation)
    if stage.best is not None and stage.best.by_validator:
        offered = usable(stage.validation.validators, stage.validation.source is not None)
        _known("validator", stage.best.metric.removeprefix(VALIDATED), offered, f"{where}.best")
    elif stage.best is not None:
        offered = [result for task in as_tuple(stage.evaluate[stage.best.stream])
                   for metric in spec.tasks[task].metrics for result in METRICS[metric].better]
        _known("metric", stage.best.metric, offered, f"{where}.best (stream {stage.best.stream!r})")
    for stream in stage.embed:
        _known("stream", stream, stage.evaluate, f"{where}.embed (an evaluated stream)")


def _check_validation(spec: ExperimentSpec, where: str, validation: ValidationSpec) -> None:
    if not validation.targets:
        raise UserError(f"{where}.target names no stream; give one or more")
    for stream in validation.targets:
        _known("stream", stream, spec.streams, f"{where}.target")
    _known("task", validation.task, spec.tasks, where)
    kind = spec.tasks[validation.task].kind
    if kind not in ("classification", "binary"):
        raise UserError(f"{where}.task: validators judge class probabilities of whole examples, but the task "
                        f"{validation.task!r} is {kind}")
    try:
        usable(validation.validators, validation.source is not None)
    except UserError as error:
        raise UserError(f"{where}.validators: {error}") from error
    if validation.source is not None:
        _known("stream", validation.source, spec.streams, f"{where}.source")
        if not spec.streams[validation.source].labelled:
            raise UserError(f"{where}.source: the stream {validation.source!r} is set to labelled=False; name a "
                            f"labelled stream")
        if validation.source in validation.targets:
            raise UserError(f"{where}: {validation.source!r} is both source and target; name two streams")


def _known(what: str, name: str, options: Any, where: str) -> None:
    if name not in options:
        raise unknown(what, name, options, where)


def _short(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
