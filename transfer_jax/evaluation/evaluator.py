"""Scores of a model on a stream: every example once, ragged last batch padded and masked, all seeds together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transfer_jax.core.compilation import compiled
from transfer_jax.core.errors import unknown
from transfer_jax.core.members import member, over_members
from transfer_jax.core.mesh import fetch, own_slots, place_batch, shard_batch
from transfer_jax.evaluation import METRICS
from transfer_jax.evaluation.metrics import accumulate
from transfer_jax.models.domains import reading, statistics_of
from transfer_jax.models.model import Model
from transfer_jax.tasks import TaskSpec, metric_batch, predict
from transfer_jax.tasks.kinds import two_logits


@dataclass
class Scores:
    """Results of one task on one stream.

    Attributes:
      metrics: name -> float64 [S], one value per seed.
      arrays: results that are not scalars (`confusion_matrix`, `per_class_accuracy` ...) -> one array per seed.
      examples: of the first seed, per example: `prediction`, `confidence`, `label`, `index`, `loss`, `features`; only
        where they were asked for.
    """

    metrics: dict[str, np.ndarray]
    arrays: dict[str, list[np.ndarray]] = field(default_factory=dict)
    examples: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluator:
    """One task on one stream; compiled once and used for every evaluation of a stage.

    Attributes:
      feed: the stream's data on the device, or None for a stream from the host.
      tap: name of the features to return with the examples, or None.
      how: how members run together; see `over_members`.
      mesh: over which every batch is split; None: one device.
    """

    model: Model
    stream: Any
    task: TaskSpec
    feed: Any
    members: int
    num_classes: int
    batch_size: int
    tap: str | None = None
    how: str = "auto"
    mesh: Mesh | None = None
    _compiled: dict[str, Callable] = field(default_factory=dict)

    def __call__(self, params: Any, batch_stats: Any, examples: bool = False) -> Scores:
        """Scores of parameters and statistics that have a leading axis [S] of seeds."""
        step = self._program("scores", self._measure)
        totals: list[Any] = [None] * self.members
        kept: list[dict[str, np.ndarray]] = []
        for feed, number in self._batches():
            states, rows = step(params, batch_stats, feed, number)
            states = fetch(states)
            for seed in range(self.members):
                one = jax.tree.map(lambda leaf, seed=seed: leaf[seed], states)
                totals[seed] = accumulate(totals[seed], one)
            if examples:
                kept.append(fetch(jax.tree.map(lambda leaf: leaf[0], rows)))
        return _scores([self._computed(total) for total in totals], _joined(kept))

    def outputs(self, params: Any, batch_stats: Any) -> list[dict[str, np.ndarray]]:
        """Of each seed, for every example in order: `logits` float32 [n, C], `features` float32 [n, D] of the tap and,
        where the stream shows labels, `label` int32 [n]. For tasks of one answer an example."""
        step = self._program("outputs", self._outputs)
        parts = fetch([step(params, batch_stats, feed, number) for feed, number in self._batches()])
        return [_joined([member(part, seed) for part in parts]) for seed in range(self.members)]

    def _batches(self) -> Any:
        count = self.stream.batches_of(self.batch_size)
        if self.feed is not None:
            return ((self.feed, jnp.int32(number)) for number in range(count))
        if self.mesh is None:
            batches = self.stream.evaluation_batches(self.batch_size)
        else:
            slots = own_slots(self.mesh, self.batch_size)
            batches = (place_batch(self.mesh, batch, self.batch_size)
                       for batch in self.stream.evaluation_batches(self.batch_size, slots))
        return ((batch, jnp.int32(number)) for number, batch in enumerate(batches))

    def _program(self, name: str, function: Callable) -> Callable:
        """`function` of one member, a feed and the number of a batch, compiled for all members; made once."""
        if name not in self._compiled:
            axes = (0, 0, self.stream.feed_axes(), None)
            self._compiled[name] = compiled(over_members(function, self.members, axes, self.how))
        return self._compiled[name]

    def _answers(self, params: Any, batch_stats: Any, feed: Any, number: jax.Array) -> tuple[Any, Any, jax.Array]:
        """(batch, taps, outputs of the task's head)."""
        batch = shard_batch(self.mesh, self.stream.evaluation_batch(feed, number, self.batch_size))
        inputs = {backbone: batch[key] for backbone, key in self.stream.spec.inputs.items()}
        domain = self.stream.spec.domain
        variables = {"params": params, "batch_stats": statistics_of(batch_stats, domain)}
        with reading(domain or None):
            taps, _ = self.model.taps(variables, inputs)
        size = next(iter(inputs.values())).shape[1:3]
        outputs, _ = self.model.head(variables, self.task.head, taps, size)
        return batch, taps, outputs

    def _measure(self, params: Any, batch_stats: Any, feed: Any, number: jax.Array) -> tuple[Any, Any]:
        batch, taps, outputs = self._answers(params, batch_stats, feed, number)
        labelled = metric_batch(self.task, batch)
        states = {"": self._states(outputs, labelled)}
        for number, part in enumerate(self._parts):
            own = {**labelled, "weight": labelled["weight"] * (batch["domain"] == number)}
            states[part] = self._states(outputs, own)
        found = predict(self.task, outputs)
        rows = {"prediction": found["prediction"], "label": labelled["label"], "index": batch["index"],
                "weight": labelled["weight"]}
        if "confidence" in found:
            rows["confidence"] = found["confidence"]
            rows["loss"] = -_log_probability(found["probabilities"], labelled["label"])
        if self.tap is not None:
            rows["features"] = self._features(taps)
        return states, rows

    def _states(self, outputs: jax.Array, labelled: Mapping[str, jax.Array]) -> dict[str, Any]:
        """State of each metric of the task for one batch."""
        return {name: METRICS[name].update(METRICS[name].init(self.num_classes), outputs, labelled)
                for name in self.task.metrics}

    @property
    def _parts(self) -> tuple[str, ...]:
        """Names of the parts of merged data, which are scored beside the whole."""
        names = self.stream.dataset.domain_names
        return names if self.stream.dataset.domains is not None and len(set(names)) == len(names) > 1 else ()

    def _computed(self, total: Mapping[str, Any]) -> dict[str, Any]:
        """Results by name; of the parts of merged data those that compare runs, as `<result>/<part>`."""
        results: dict[str, Any] = {}
        for name in self.task.metrics:
            results |= METRICS[name].compute(total[""][name])
            for part in self._parts:
                found = METRICS[name].compute(total[part][name])
                results |= {f"{result}/{part}": found[result] for result in METRICS[name].better}
        return results

    def _outputs(self, params: Any, batch_stats: Any, feed: Any, number: jax.Array) -> dict[str, jax.Array]:
        batch, taps, outputs = self._answers(params, batch_stats, feed, number)
        logits = two_logits(outputs) if outputs.shape[1:] in ((), (1,)) else outputs.astype(jnp.float32)
        rows = {"logits": logits, "features": self._features(taps).astype(jnp.float32), "weight": batch["weight"]}
        return rows | ({"label": batch[self.task.label]} if self.task.label in batch else {})

    def _features(self, taps: Any) -> jax.Array:
        """The tap as vectors [B, D]: maps and tokens by their mean."""
        if self.tap not in taps:
            raise unknown("tap", self.tap, taps, f"the model on stream {self.stream.name!r}")
        features = taps[self.tap]
        return features.mean(tuple(range(1, features.ndim - 1)))


def _log_probability(probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """Log-probability of the label, one number an example (the mean over pixels for maps)."""
    chosen = jnp.take_along_axis(probabilities, jnp.clip(labels, 0)[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jnp.log(jnp.maximum(chosen, 1e-30)).reshape(labels.shape[0], -1).mean(-1)


def _scores(results: list[dict[str, Any]], examples: dict[str, np.ndarray]) -> Scores:
    metrics, arrays = {}, {}
    for name in results[0]:
        values = [np.asarray(result[name]) for result in results]
        if values[0].ndim == 0:
            metrics[name] = np.asarray(values, np.float64)
        else:
            arrays[name] = values
    return Scores(metrics, arrays, examples)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows of all batches, padding dropped."""
    if not parts:
        return {}
    real = np.concatenate([part["weight"] for part in parts]) > 0
    return {name: np.concatenate([part[name] for part in parts])[real] for name in parts[0] if name != "weight"}
