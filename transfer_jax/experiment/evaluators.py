"""The evaluators of an experiment: one for each task on each stream, compiled once and shared by all stages."""

from __future__ import annotations

from typing import Any

import numpy as np

from transfer_jax.core.mesh import replicate
from transfer_jax.core.paths import unflatten
from transfer_jax.evaluation.evaluator import Evaluator, Scores
from transfer_jax.experiment.assembly import Assembly, as_tuple
from transfer_jax.experiment.spec import StageSpec
from transfer_jax.training.state import Flat


class Evaluators:
    """Makes evaluators when first asked for."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self._made: dict[tuple[str, str, str | None, int | None], Evaluator] = {}

    def get(self, stream: str, task: str, tap: str | None = None, most: int | None = None) -> Evaluator:
        """The evaluator of a task on a stream; with `tap` its examples come with these features, with `most` there are
        no more than so many."""
        key = stream, task, tap, most
        if key not in self._made:
            assembly = self.assembly
            opened, feed = assembly.stream(stream), assembly.feed(stream)
            if most is not None and opened.size > most:
                opened = opened.thinned(most)
                feed = None if feed is None else replicate(assembly.mesh, opened.feed())
            self._made[key] = Evaluator(
                assembly.model, opened, assembly.spec.tasks[task], feed, assembly.members,
                len(assembly.class_names(task)) or 1, assembly.spec.eval_batch_size, tap, assembly.spec.members,
                assembly.mesh)
        return self._made[key]

    def outputs(self, stream: str, task: str, tap: str, most: int, params: Flat,
                batch_stats: Any) -> list[dict[str, np.ndarray]]:
        """Logits and features of each seed; see `Evaluator.outputs`."""
        return self.get(stream, task, tap, most).outputs(_model_tree(params), batch_stats)

    def scores(self, stage: StageSpec, params: Flat, batch_stats: Any, examples: bool = False) -> dict[str, Scores]:
        """Scores by label (see `labelled`) of parameters with a member axis."""
        tree = _model_tree(params)
        return {label: self.get(stream, task, stage.embed_tap if stream in stage.embed else None)(
            tree, batch_stats, examples) for label, (stream, task) in labelled(stage).items()}


def _model_tree(params: Flat) -> Any:
    """Parameters of the model as a tree, without those of the objective."""
    return unflatten({path: leaf for path, leaf in params.items() if not path.startswith("objective/")})


def labelled(stage: StageSpec) -> dict[str, tuple[str, str]]:
    """Label -> (stream, task) of what a stage evaluates; the stream's name alone where it has one task."""
    return {stream if isinstance(tasks, str) else f"{stream}/{task}": (stream, task)
            for stream, tasks in stage.evaluate.items() for task in as_tuple(tasks)}
