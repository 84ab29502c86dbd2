"""Measuring statistics of the start: one pass over a stream before a stage's first step, all seeds together."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.compilation import compiled
from transfer_jax.core.errors import UserError
from transfer_jax.core.members import over_members
from transfer_jax.core.mesh import fetch, own_slots, place_batch, shard_batch
from transfer_jax.core.paths import unflatten
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.stage import ReadyStage
from transfer_jax.models.domains import reading, statistics_of
from transfer_jax.models.taps import find_tap
from transfer_jax.objectives.spec import TermSpec
from transfer_jax.objectives.statistics import StartView, Statistic
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

BATCH = 32


class Measuring:
    """The statistics that the terms of a stage ask for."""

    def __init__(self, assembly: Assembly, ready: ReadyStage) -> None:
        self.assembly, self.ready = assembly, ready
        terms = [term for update in ready.program.updates for term in update.terms]
        self.wanted = {statistic_name(term, quantity): (term, statistic)
                       for term in terms for quantity, statistic in term.statistics.items()}
        if len(self.wanted) < sum(len(term.statistics) for term in terms):
            raise UserError(f"config.stages.{ready.name}.objective: two terms of one name measure the start; give "
                            f"them different names")

    def shapes(self, params: Flat, batch_stats: Any) -> dict[str, Any]:
        """Shapes of the statistics of all seeds, by name."""
        found = {}
        for name, (term, statistic) in self.wanted.items():
            feed, number = next(self._batches(term))
            sums = jax.eval_shape(self._over_members(term, statistic), params, batch_stats, feed, number)
            found[name] = jax.eval_shape(jax.vmap(statistic.finish), sums)
        return found

    def values(self, params: Flat, batch_stats: Any) -> dict[str, Any]:
        """The statistics by name, of parameters [S, ...] and statistics of norms at the stage's start."""
        return {name: self._value(term, statistic, params, batch_stats)
                for name, (term, statistic) in self.wanted.items()}

    def _value(self, term: Term, statistic: Statistic, params: Flat, batch_stats: Any) -> Any:
        measure = compiled(self._over_members(term, statistic))
        total: Any = None
        for feed, number in self._batches(term):
            # Summed in float64 on the host: a million of examples would lose digits in float32.
            sums = jax.tree.map(lambda leaf: leaf.astype(np.float64), fetch(measure(params, batch_stats, feed, number)))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        return jax.jit(jax.vmap(statistic.finish))(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), total))

    def _batches(self, term: Term) -> Iterator[tuple[Any, jax.Array]]:
        """(feed, number) of all batches of the pass, or of as many, evenly spaced, as the term wants examples."""
        name, wanted = measured_stream(term.spec), term.spec.measured_examples
        stream, feed = self.assembly.stream(name), self.assembly.feed(name)
        count = stream.batches_of(BATCH)
        chosen = count if wanted is None else min(count, -(-wanted // BATCH))
        numbers = set(np.linspace(0, count - 1, chosen).round().astype(int).tolist())
        if feed is not None:
            yield from ((feed, jnp.int32(number)) for number in sorted(numbers))
            return
        mesh = self.assembly.mesh
        for number, batch in enumerate(stream.evaluation_batches(BATCH, own_slots(mesh, BATCH))):
            if number in numbers:
                yield place_batch(mesh, batch, BATCH), jnp.int32(number)

    def _over_members(self, term: Term, statistic: Statistic) -> Any:
        stream = self.assembly.stream(measured_stream(term.spec))

        def measure(params: Flat, batch_stats: Any, feed: Any, number: jax.Array) -> Any:
            batch = shard_batch(self.assembly.mesh, stream.evaluation_batch(feed, number, BATCH))
            return statistic.measure(self._view(term, params, batch_stats), batch)

        return over_members(measure, self.assembly.members, (0, 0, stream.feed_axes(), None),
                            self.assembly.spec.members)

    def _view(self, term: Term, params: Flat, batch_stats: Any) -> StartView:
        name, program = measured_stream(term.spec), self.ready.program
        stream = self.assembly.stream(name)
        batch_stats = statistics_of(batch_stats, stream.spec.domain)

        def taps(batch: Mapping[str, Any], parameters: Flat | None = None, edits: Any = None) -> tuple[Any, Any]:
            variables = {"params": unflatten(merged(program.peft, {**params, **(parameters or {})})),
                         "batch_stats": batch_stats}
            with reading(stream.spec.domain or None):
                return variables, program.model.taps(variables, inputs_of(stream, batch), edits=edits)[0]

        def logits(batch: Mapping[str, Any], parameters: Flat | None = None, edits: Any = None) -> jax.Array:
            variables, found = taps(batch, parameters, edits)
            return program.model.head(variables, term.head, found, image_size(stream, batch))[0]

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
