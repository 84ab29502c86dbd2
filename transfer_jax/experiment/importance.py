"""Weights of the examples of a stage's stream, found from a target without labels by the model as it is."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transfer_jax.adaptation import WEIGHTS
from transfer_jax.adaptation.partial import class_shares
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import Component, bind
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.passes import StreamPass
from transfer_jax.experiment.spec import ImportanceSpec
from transfer_jax.experiment.stage import ReadyStage
from transfer_jax.models.domains import reading, statistics_of
from transfer_jax.models.taps import find_tap
from transfer_jax.params.peft import merged
from transfer_jax.training.forward import image_size, inputs_of
from transfer_jax.training.state import Flat

CLASS_SHARES = "class_shares"


class Importance:
    """The weights of one stream, for all seeds."""

    def __init__(self, assembly: Assembly, ready: ReadyStage, stream: str, spec: ImportanceSpec) -> None:
        self.assembly, self.ready, self.stream, self.spec = assembly, ready, stream, spec
        where = f"config.stages.{ready.name}.importance.{stream}"
        for name in (stream, spec.target):
            if name not in assembly.spec.streams:
                raise unknown("stream", name, assembly.spec.streams, where)
        self._head = self._head_of_task(where) if spec.kind == CLASS_SHARES else None
        if self._head is None:
            self._weigh = bind(WEIGHTS, Component(kind=spec.kind, **spec.arguments), "importance", where,
                               ("source", "target", "key"))

    def shape(self) -> jax.ShapeDtypeStruct:
        """[S, n] for the n examples of the stream."""
        return jax.ShapeDtypeStruct((self.assembly.members, self.assembly.stream(self.stream).size), np.float32)

    def values(self, params: Flat, batch_stats: Any) -> np.ndarray:
        """float32 [S, n], mean one for every seed, of parameters [S, ...]."""
        target = self._pass(self.spec.target).rows(params, batch_stats)
        source = self._labels() if self._head else self._pass(self.stream).rows(params, batch_stats)
        seeds = self.ready.seeds(self.assembly.spec.seeds)["step"]
        found = [class_shares(there, here)[0] if self._head else self._weigh(here, there, jax.random.key(int(seed)))[0]
                 for here, there, seed in zip(source, target, seeds, strict=True)]
        return np.stack(found).astype(np.float32)

    def _head_of_task(self, where: str) -> str:
        tasks = self.assembly.spec.tasks
        if self.spec.task not in tasks:
            raise unknown("task", str(self.spec.task), tasks, f"{where} (kind '{CLASS_SHARES}' needs a task)")
        if self.spec.arguments:
            raise unknown("argument", next(iter(self.spec.arguments)), [], where)
        return tasks[self.spec.task].head

    def _labels(self) -> np.ndarray:
        stream = self.assembly.stream(self.stream)
        if stream.dataset.labels is None or not stream.spec.labelled:
            raise UserError(f"config.stages.{self.ready.name}.importance.{self.stream}: class_shares weighs examples "
                            f"by their labels, but the stream has none")
        return np.asarray(stream.dataset.labels)[stream.indices]

    @functools.cache  # noqa: B019 - it lives as long as its stage
    def _pass(self, name: str) -> StreamPass:
        stream, program = self.assembly.stream(name), self.ready.program

        def rows(params: Flat, batch_stats: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            variables = {"params": unflatten(merged(program.peft, params)),
                         "batch_stats": statistics_of(batch_stats, stream.spec.domain)}
            with reading(stream.spec.domain or None, self._head):
                taps, _ = program.model.taps(variables, inputs_of(stream, batch))
            if self._head is None:
                return find_tap(taps, self.spec.tap).reshape(len(batch["weight"]), -1)
            logits, _ = program.model.head(variables, self._head, taps, image_size(stream, batch))
            return jax.nn.softmax(logits)

        return StreamPass(self.assembly, name, rows, self.assembly.spec.eval_batch_size)
