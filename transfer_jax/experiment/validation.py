"""Validators of a stage: how its result is judged, at every evaluation, without labels of the target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core import processes
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.evaluation.evaluator import Scores
from transfer_jax.evaluation.validators import Evidence, usable, validate
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.evaluators import Evaluators
from transfer_jax.experiment.spec import ValidationSpec
from transfer_jax.models.model import qualified
from transfer_jax.training.state import Flat
from transfer_jax.training.writers import VALIDATED

SHOWN = 500  # examples of each stream whose features are kept for the report
NO_LABEL = -1

Outputs = dict[str, list[dict[str, np.ndarray]]]  # stream -> what the model makes of it, a dict for each seed


class Validation:
    """The validators that a stage asks for, over evaluators that all stages share."""

    def __init__(self, evaluators: Evaluators, stage: str) -> None:
        self.evaluators, self.stage = evaluators, stage
        self.spec: ValidationSpec = evaluators.assembly.spec.stages[stage].validation
        self.names = usable(self.spec.validators, self.spec.source is not None)
        check_source(evaluators.assembly, stage)
        check_tap(evaluators.assembly, self.spec, f"config.stages.{stage}.validation")

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(filter(None, (*self.spec.targets, self.spec.source)))

    def outputs(self, params: Flat, batch_stats: Any) -> Outputs:
        """One pass over each stream, with parameters that have a member axis."""
        spec = self.spec
        return {stream: self.evaluators.outputs(stream, spec.task, spec.tap, spec.examples, params, batch_stats)
                for stream in self.streams}

    def metrics(self, outputs: Outputs) -> dict[str, dict[str, np.ndarray]]:
        """Target stream -> validator -> float64 [S]. Process 0 computes them for all: `best` must choose alike
        everywhere, and no two machines need round alike."""
        seeds = range(self.evaluators.assembly.members)
        found = processes.first_says(lambda: [[self._validate(outputs, target, seed) for seed in seeds]
                                              for target in self.spec.targets])
        return {target: {f"{VALIDATED}{name}": np.array([scores[name] for scores in by_seed]) for name in self.names}
                for target, by_seed in zip(self.spec.targets, found, strict=True)}

    def _validate(self, outputs: Outputs, target: str, seed: int) -> dict[str, float]:
        try:
            return validate(self.evidence(outputs, target, seed), self.names)
        except UserError as error:
            number = self.evaluators.assembly.spec.seeds[seed]
            raise UserError(f"validation of stage {self.stage!r} on {target!r}, seed {number}: {error}") from error

    def evidence(self, outputs: Outputs, target: str, seed: int) -> Evidence:
        """What validators may know: of the target no labels, though the pass has brought them where there are any."""
        there = outputs[target][seed]
        if self.spec.source is None:
            return Evidence(there["features"], there["logits"])
        here = outputs[self.spec.source][seed]
        return Evidence(there["features"], there["logits"], here["features"], here["logits"], here["label"])

    def keep(self, outputs: Outputs, folder: Path, moment: str) -> None:
        """Writes `validation/<moment>.npz` into the folder: features of the first seed, for the report."""
        if processes.primary():
            path = folder / "validation" / f"{moment}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, **self._shown(outputs))

    def _shown(self, outputs: Outputs) -> dict[str, np.ndarray]:
        streams = self.evaluators.assembly.spec.streams
        parts: dict[str, list[np.ndarray]] = {"features": [], "feature_labels": [], "feature_domains": []}
        for stream, by_seed in outputs.items():
            rows = by_seed[0]
            shown = np.linspace(0, len(rows["features"]) - 1, min(SHOWN, len(rows["features"]))).astype(int)
            parts["features"].append(rows["features"][shown])
            parts["feature_labels"].append(rows["label"][shown] if "label" in rows else np.full(len(shown), NO_LABEL))
            parts["feature_domains"].append(np.full(len(shown), streams[stream].domain or stream))
        return {name: np.concatenate(found) for name, found in parts.items()}


def metric_lines(scores: Mapping[str, Scores],
                 validated: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Stream -> its metrics of both kinds: one line of `metrics.jsonl`."""
    return {label: {**(scores[label].metrics if label in scores else {}), **validated.get(label, {})}
            for label in dict.fromkeys([*scores, *validated])}


def check_tap(assembly: Assembly, spec: ValidationSpec, where: str) -> None:
    """Raises UserError unless the model has the tap on each of the streams."""
    for stream in (*spec.targets, *([spec.source] if spec.source else [])):
        taps = [qualified(name, tap) for name in assembly.spec.streams[stream].inputs
                for tap in assembly.model.backbones[name].tap_names]
        if spec.tap not in taps:
            raise unknown("tap", spec.tap, taps, f"{where}.tap (stream {stream!r})")


def check_source(assembly: Assembly, stage: str) -> None:
    """The source must be held out from all that was learnt up to this stage, and have the classes of the task.

    Raises:
        UserError: it is a stream that a stage learns from, or shares examples of one data set with such a stream.
    """
    spec, where = assembly.spec.stages[stage].validation, f"config.stages.{stage}.validation"
    if spec.source is None:
        return
    held_out = assembly.stream(spec.source)
    if held_out.class_names != assembly.class_names(spec.task):
        raise UserError(f"{where}.source: the stream {spec.source!r} has other classes than the task {spec.task!r}; "
                        f"choose the same with 'classes'")
    names = list(assembly.spec.stages)
    for earlier in names[:names.index(stage) + 1]:
        for stream in assembly.spec.stages[earlier].objective.streams():
            learnt = assembly.stream(stream)
            if stream == spec.source or (_same_data(learnt.spec, held_out.spec) and any(
                    np.isin(*rows).any() for rows in zip(held_out.indices, learnt.indices, strict=True))):
                raise UserError(f"{where}.source: the stage {earlier!r} learns from examples of {spec.source!r} (its "
                                f"stream {stream!r}); hold some out, for example with within='[80%:]' here and "
                                f"'[:80%]' there")


def _same_data(one: Any, other: Any) -> bool:
    """Whether equal row numbers of two streams mean equal examples."""
    return (one.data, one.split, one.classes) == (other.data, other.split, other.classes)
