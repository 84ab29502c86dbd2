"""Scores of a model on a stream: every example once, ragged last batch padded and masked, all seeds together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transfer_jax.core.compilation import compiled
from transfer_jax.core.errors import unknown
from transfer_jax.core.inputs import read_inputs
from transfer_jax.core.members import member, over_members
from transfer_jax.core.mesh import fetch, own_slots, place_batch, shard_batch
from transfer_jax.evaluation import METRICS
from transfer_jax.evaluation.shown import worst_and_others
from transfer_jax.models.domains import reading, statistics_of
from transfer_jax.models.model import Model
from transfer_jax.tasks import TASKS, TaskSpec, example_error, metric_batch, predict
from transfer_jax.tasks.binary import two_logits
from transfer_jax.tasks.metric import Collected, accumulate

PART = "part of merged data"  # the entry of collected rows that tells it
VECTORS = ("features",)  # kept of every example beside single numbers, where asked for
DRAWN = ("label", "prediction", "probabilities")


@dataclass
class Scores:
    """Results of one task on one stream.

    Attributes:
      metrics: name -> float64 [S], one value per seed.
      arrays: results that are not scalars (`confusion_matrix`, `per_class_accuracy` ...) -> one array per seed.
      examples: of the first seed, per example: `index`, `loss`, `features`, and `prediction`, `confidence` and `label`
        that are one number; only where they were asked for.
      shown: of those examples that a report draws: `row`, their place among `examples`, with `label`, `prediction` and
        `probabilities`, where each part of the prediction has one; only for answers that can be drawn.
      answers: what the predictions are, see `TaskKind`.
    """

    metrics: dict[str, np.ndarray]
    arrays: dict[str, list[np.ndarray]] = field(default_factory=dict)
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    shown: dict[str, np.ndarray] = field(default_factory=dict)
    answers: str = ""


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
        """Scores of parameters and statistics that have a leading axis [S] of seeds.

        Of every example single numbers are kept, never its maps: batches with examples that are drawn run once more.
        """
        step = self._program("scores", self._measure)
        totals: list[Any] = [None] * self.members
        parts: list[dict[str, dict[str, np.ndarray]]] = []
        kept: list[dict[str, np.ndarray]] = []
        for feed, number in self._batches():
            states, collected, rows = step(params, batch_stats, feed, number)
            states = fetch(states)
            parts.append(fetch(collected))
            for seed in range(self.members):
                totals[seed] = accumulate(totals[seed], member(states, seed))
            if examples:
                kept.append(fetch({name: leaf[0] for name, leaf in rows.items() if leaf.ndim == 2 or name in VECTORS}))
        found, answers = _joined(kept), TASKS[self.task.kind].answers
        drawn = answers and "loss" in found and "prediction" not in found
        shown = self._shown(params, batch_stats, kept, worst_and_others(found["loss"])) if drawn else {}
        return _scores([self._computed(totals[seed], [member(part, seed) for part in parts])
                        for seed in range(self.members)], found, shown, answers)

    def _shown(self, params: Any, batch_stats: Any, kept: Sequence[Mapping[str, np.ndarray]],
               rows: np.ndarray) -> dict[str, np.ndarray]:
        """Answers and truth of the first seed at these rows of the examples `kept`, batch by batch; see `Scores`."""
        step = self._program("scores", self._measure)
        weight = np.stack([part["weight"] for part in kept])
        batches, slots = np.divmod(np.flatnonzero(weight)[rows], weight.shape[1])
        found: dict[str, list[Any]] = {name: [None] * len(rows) for name in DRAWN}
        numbers = np.unique(batches)
        for number, (feed, given) in zip(numbers, self._batches(numbers.tolist()), strict=True):
            answers = fetch({name: leaf[0] for name, leaf in step(params, batch_stats, feed, given)[2].items()
                             if name in DRAWN})
            for place in np.flatnonzero(batches == number):
                for name, values in answers.items():
                    found[name][place] = values[slots[place]]
        return {"row": rows, **{name: np.stack(values) for name, values in found.items() if values[0] is not None}}

    def _computed(self, total: Mapping[str, Any], parts: list[dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
        """The results of one seed: of its summed states and of the rows that it collected. Of the parts of merged data
        those that compare runs, as `<result>/<part>`."""
        results: dict[str, Any] = {}
        for name in self.task.metrics:
            metric = METRICS[name]
            if isinstance(metric, Collected):
                rows = _joined([part[name] for part in parts])
                of = rows.pop(PART, None)
                given = [rows] + [{key: value[of == number] for key, value in rows.items()}
                                  for number in range(len(self._parts))]
            else:
                given = [total[part][name] for part in ("", *self._parts)]
            whole, *found = [metric.compute(one) for one in given]
            results |= whole
            for part, own in zip(self._parts, found, strict=True):
                results |= {f"{result}/{part}": own[result] for result in metric.better}
        return results

    @property
    def _parts(self) -> tuple[str, ...]:
        """Names of the parts of merged data, which are scored beside the whole."""
        dataset = self.stream.dataset
        names = dataset.domain_names if dataset.domains is not None else ()
        return names if len(set(names)) == len(names) > 1 else ()

    def outputs(self, params: Any, batch_stats: Any) -> list[dict[str, np.ndarray]]:
        """Of each seed, for every example in order: `logits` float32 [n, C], `features` float32 [n, D] of the tap and,
        where the stream shows labels, `label` int32 [n]. For tasks of one answer an example."""
        step = self._program("outputs", self._outputs)
        parts = fetch([step(params, batch_stats, feed, number) for feed, number in self._batches()])
        return [_joined([member(part, seed) for part in parts]) for seed in range(self.members)]

    def _batches(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[Any, jax.Array]]:
        """(feed, number) of every batch, or of those of these numbers."""
        if self.feed is not None:
            wanted = range(self.stream.batches_of(self.batch_size)) if numbers is None else numbers
            return ((self.feed, jnp.int32(number)) for number in wanted)
        spans = [(0, None)] if numbers is None else [(number, number + 1) for number in numbers]
        slots = None if self.mesh is None else own_slots(self.mesh, self.batch_size)
        return ((batch if self.mesh is None else place_batch(self.mesh, batch, self.batch_size), jnp.int32(number))
                for start, stop in spans for number, batch in
                enumerate(self.stream.evaluation_batches(self.batch_size, slots, start, stop), start))

    def _program(self, name: str, function: Callable) -> Callable:
        """`function` of one member, a feed and the number of a batch, compiled for all members; made once."""
        if name not in self._compiled:
            axes = (0, 0, self.stream.feed_axes(), None)
            self._compiled[name] = compiled(over_members(function, self.members, axes, self.how))
        return self._compiled[name]

    def _answers(self, params: Any, batch_stats: Any, feed: Any, number: jax.Array) -> tuple[Any, Any, jax.Array]:
        """(batch, taps, outputs of the task's head)."""
        batch = shard_batch(self.mesh, self.stream.evaluation_batch(feed, number, self.batch_size))
        inputs = read_inputs(self.stream.spec.inputs, batch)
        domain = self.stream.spec.domain
        variables = {"params": params, "batch_stats": statistics_of(batch_stats, domain)}
        with reading(domain or None, self.task.head):
            taps, _ = self.model.taps(variables, inputs)
        size = next(iter(inputs.values())).shape[1:3]
        outputs, _ = self.model.head(variables, self.task.head, taps, size)
        return batch, taps, outputs

    def _measure(self, params: Any, batch_stats: Any, feed: Any, number: jax.Array) -> tuple[Any, Any, Any]:
        """(summed states by metric, collected rows by metric, what is kept of the examples)."""
        batch, taps, outputs = self._answers(params, batch_stats, feed, number)
        labelled = metric_batch(self.task, {**batch, "std": jnp.asarray(self.stream.spec.std, jnp.float32)})
        metrics = {name: METRICS[name] for name in self.task.metrics}
        of_part = {PART: batch["domain"]} if self._parts else {}
        states: dict[str, Any] = {}
        for number, part in enumerate(("", *self._parts)):
            own = labelled["weight"] * (batch["domain"] == number - 1) if part else labelled["weight"]
            states[part] = {name: metric.update(metric.init(self.num_classes), outputs, {**labelled, "weight": own})
                            for name, metric in metrics.items() if not isinstance(metric, Collected)}
        found = predict(self.task, outputs)
        answered = {**labelled, "prediction": found["prediction"]}
        collected = {name: {**metric.rows(outputs, answered), **of_part, "weight": labelled["weight"]}
                     for name, metric in metrics.items() if isinstance(metric, Collected)}
        rows = {"prediction": found["prediction"], "label": labelled["label"], "index": batch["index"],
                "weight": labelled["weight"]}
        if "confidence" in found:
            rows["confidence"] = found["confidence"]
        elif "probabilities" in found:
            rows["probabilities"] = found["probabilities"]
        error = example_error(self.task, outputs, labelled["label"])
        if error is not None:
            rows["loss"] = error
        if self.tap is not None:
            rows["features"] = self._features(taps)
        return states, collected, rows

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


def _scores(results: list[dict[str, Any]], examples: dict[str, np.ndarray], shown: dict[str, np.ndarray],
            answers: str) -> Scores:
    metrics, arrays = {}, {}
    for name in results[0]:
        values = [np.asarray(result[name]) for result in results]
        if values[0].ndim == 0:
            metrics[name] = np.asarray(values, np.float64)
        else:
            arrays[name] = values
    return Scores(metrics, arrays, examples, shown, answers)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows of all batches, padding dropped."""
    if not parts:
        return {}
    real = np.concatenate([part["weight"] for part in parts]) > 0
    return {name: np.concatenate([part[name] for part in parts])[real] for name in parts[0] if name != "weight"}
