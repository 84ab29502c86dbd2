"""Measuring statistics of a data set: a pass over a stream before a stage's first step, all seeds together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.evaluation.calibration import fit_temperature
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.consolidation import head_task, statistic_before
from transfer_jax.experiment.importance import Importance
from transfer_jax.experiment.passes import StreamPass
from transfer_jax.experiment.stage import ReadyStage
from transfer_jax.models.domains import reading, statistics_of
from transfer_jax.models.taps import find_tap
from transfer_jax.objectives.spec import TermSpec
from transfer_jax.objectives.statistics import StartView
from transfer_jax.objectives.wiring import (
    Context,
    Term,
    call_term,
    labels_of,
    make_term,
    measured_stream,
    statistic_name,
)
from transfer_jax.params.peft import merged
from transfer_jax.training.forward import image_size, inputs_of
from transfer_jax.training.state import Flat
from transfer_jax.training.step import weights_name

BATCH = 32


class Measuring:
    """The statistics that the terms of a stage ask for, and the weights of its examples.

    kept: name of a stage before -> the statistics that it held, by name.
    """

    def __init__(self, assembly: Assembly, ready: ReadyStage,
                 kept: Callable[[str], Mapping[str, Any]] | None = None) -> None:
        self.assembly, self.ready, self.kept = assembly, ready, kept
        terms = [term for update in ready.program.updates for term in update.terms]
        self.wanted = {statistic_name(term.name, quantity): (term, statistic)
                       for term in terms for quantity, statistic in term.statistics.items()}
        self.weights = {weights_name(stream): Importance(assembly, ready, stream, spec)
                        for stream, spec in ready.spec.importance.items()}
        for name, (term, statistic) in self.wanted.items():
            if statistic.each and term.spec.measured_examples is not None:
                raise UserError(f"config.stages.{ready.name}.objective: {name} is wanted of every example; leave "
                                f"measured_examples out")
        if len(self.wanted) < sum(len(term.statistics) for term in terms):
            raise UserError(f"config.stages.{ready.name}.objective: two terms of one name measure the start; give "
                            f"them different names")

    def shapes(self, params: Flat, batch_stats: Any) -> dict[str, Any]:
        """Shapes of the statistics of all seeds, by name."""
        found = {}
        for name, (term, statistic) in self.wanted.items():
            parts = self._pass(name).shapes(self._given(name, params), batch_stats)
            if statistic.each:
                parts = jax.tree.map(functools.partial(self._of_all, term), parts)
            found[name] = jax.eval_shape(self._finish(name), *(parts if statistic.each else (parts,)))
        return found | {name: weights.shape() for name, weights in self.weights.items()}

    def values(self, params: Flat, batch_stats: Any, renewed: bool = False) -> dict[str, Any]:
        """The statistics by name, of parameters [S, ...] and statistics of norms; with `renewed` those that are
        measured anew as the model changes, without it all."""
        found = {name: self._value(name, params, batch_stats)
                 for name, (_, statistic) in self.wanted.items() if statistic.renewed or not renewed}
        return found | {name: weights.values(params, batch_stats) for name, weights in self.weights.items()
                        if weights.spec.renewed or not renewed}

    @functools.cache  # noqa: B019 - it lives as long as its stage, which asks again and again for what is renewed
    def _finish(self, name: str) -> Any:
        """What was measured of all seeds -> what terms receive."""
        return jax.jit(jax.vmap(self.wanted[name][1].finish))

    @functools.cache  # noqa: B019 - likewise
    def _pass(self, name: str) -> StreamPass:
        term, statistic = self.wanted[name]
        stream = measured_stream(term.spec)

        def measure(given: tuple[Flat, Any], batch_stats: Any, batch: Mapping[str, Any]) -> Any:
            params, temperature = given
            found = statistic.measure(self._view(term, stream, params, batch_stats, temperature), batch)
            return (found, batch["weight"]) if statistic.each else found

        return StreamPass(self.assembly, stream, measure, BATCH)

    def _given(self, name: str, params: Flat, batch_stats: Any = None) -> tuple[Flat, Any]:
        """Parameters and temperatures [S] for a pass; the latter are None where nothing is calibrated, and shapes
        without statistics of norms."""
        stream = self.wanted[name][1].calibrated_on
        if stream is None:
            return params, None
        if batch_stats is None:
            return params, jax.ShapeDtypeStruct((self.assembly.members,), jnp.float32)
        return params, self._temperatures(name, stream, params, batch_stats)

    def _temperatures(self, name: str, stream: str, params: Flat, batch_stats: Any) -> Any:
        """The temperature of the term's head on a stream of the task that it was trained for, [S]."""
        term = self.wanted[name][0]
        spec = TermSpec(kind="task", task=head_task(self.assembly.spec, term.head), stream=stream)
        source = make_term("calibration", spec, self.assembly.spec.tasks, f"the calibration of term {term.name!r}")

        def answers(params: Flat, batch_stats: Any, batch: Mapping[str, Any]) -> tuple[Any, ...]:
            view = self._view(term, stream, params, batch_stats)
            return view.logits(batch), labels_of(source, stream, batch), batch["weight"]

        rows = StreamPass(self.assembly, stream, answers, BATCH).rows(params, batch_stats)
        return jnp.asarray([fit_temperature(logits[weights > 0], labels[weights > 0])
                            for logits, labels, weights in zip(*rows, strict=True)], jnp.float32)

    def _value(self, name: str, params: Flat, batch_stats: Any) -> Any:
        (term, statistic), given = self.wanted[name], self._given(name, params, batch_stats)
        found = self._measured(name, given, batch_stats)
        if statistic.after is None:
            return found
        before = self.kept(statistic.after)[statistic_before(self.assembly.spec, self.ready.name, term)]
        return {path: leaf + statistic.decay * before[path] if path in before else leaf
                for path, leaf in found.items()}

    def _measured(self, name: str, params: tuple[Flat, Any], batch_stats: Any) -> Any:
        (term, statistic), over = self.wanted[name], self._pass(name)
        if statistic.each:
            return self._finish(name)(*over.rows(params, batch_stats))
        wanted = term.spec.measured_examples  # about so many, in evenly spaced batches
        chosen = over.batches if wanted is None else min(over.batches, -(-wanted // BATCH))
        numbers = np.linspace(0, over.batches - 1, chosen).round().astype(int).tolist()
        # Summed in float64 on the host: a million of examples would lose digits in float32.
        sums = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b),
                                (jax.tree.map(lambda leaf: leaf.astype(np.float64), part)
                                 for part in over.results(params, batch_stats, numbers)))
        return self._finish(name)(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), sums))

    def _of_all(self, term: Term, part: Any) -> jax.ShapeDtypeStruct:
        size = self.assembly.stream(measured_stream(term.spec)).size
        return jax.ShapeDtypeStruct((part.shape[0], size, *part.shape[2:]), part.dtype)

    def _view(self, term: Term, name: str, params: Flat, batch_stats: Any, temperature: Any = None) -> StartView:
        """What the term may look at of the stream `name`; the logits are divided by `temperature` if there is one."""
        program = self.ready.program
        stream = self.assembly.stream(name)
        batch_stats = statistics_of(batch_stats, stream.spec.domain)

        def taps(batch: Mapping[str, Any], parameters: Flat | None = None, edits: Any = None) -> tuple[Any, Any]:
            variables = {"params": unflatten(merged(program.peft, {**params, **(parameters or {})})),
                         "batch_stats": batch_stats}
            with reading(stream.spec.domain or None, term.head):
                return variables, program.model.taps(variables, inputs_of(stream, batch), edits=edits)[0]

        def logits(batch: Mapping[str, Any], parameters: Flat | None = None, edits: Any = None) -> jax.Array:
            variables, found = taps(batch, parameters, edits)
            output = program.model.head(variables, term.head, found, image_size(stream, batch))[0]
            return output if temperature is None else output / temperature

        def features(batch: Mapping[str, Any]) -> jax.Array:
            return find_tap(taps(batch)[1], term.spec.tap)

        return StartView({path: params[path] for path in program.partition.trainable}, logits, features,
                         functools.partial(labels_of, term, name), self._loss(term, name), term.task_kind,
                         len(self.assembly.class_names(term.spec.task)) if term.spec.task else 0, term.spec.tap)

    def _loss(self, term: Term, name: str) -> Any:
        """(logits, batch) -> the mean loss of the term's task, as the task defines it."""
        if term.spec.task is None:
            return None
        spec = TermSpec(kind="task", task=term.spec.task, stream=name)
        task = make_term("loss", spec, self.assembly.spec.tasks, f"the loss of term {term.name!r}")

        def loss(logits: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
            context = Context(batches={name: batch}, output=lambda stream, head: logits, progress=jnp.zeros(()),
                              key=jax.random.key(0))
            return call_term(task, context)[0]

        return loss
