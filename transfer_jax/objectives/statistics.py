"""Statistics: what a term has to know of a whole data set under the model with which its stage starts.

A term asks for one by the name of a positional parameter (`fisher`). It is measured by a pass over a stream before the
first step, some (`renewed`) anew whenever the stage's `measure_every` says, and kept in checkpoints. A statistic is a
function of its options that returns a `Statistic`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError

Batch = Mapping[str, jax.Array]
Flat = dict[str, jax.Array]


@dataclass(frozen=True)
class StartView:
    """The model of the start as a statistic sees it: without dropout, on stored statistics.

    Attributes:
      parameters: path -> trainable leaf.
      logits: (batch, parameters=..., edits=...) -> output of the term's head; `edits` maps a tap to a function of it.
      features: batch -> the term's tap.
      labels: batch -> labels of the term's task.
      loss: (logits, batch) -> the mean loss of the term's task.
      kind: of the task; 'classification' without one.
      classes: number of classes of the task.
      tap: name of the term's tap.
    """

    parameters: Flat
    logits: Callable[..., jax.Array]
    features: Callable[[Batch], jax.Array]
    labels: Callable[[Batch], jax.Array]
    loss: Callable[[jax.Array, Batch], jax.Array]
    kind: str
    classes: int
    tap: str


@dataclass(frozen=True)
class Statistic:
    """`measure(view, batch)` gives sums over the examples of a batch, `finish` makes what the term receives of their
    sums over all batches. Examples of weight 0 are padding.

    With `each` it gives arrays [B, ...] instead, and `finish` receives those of all examples [n, ...] in the stream's
    order and their weights [n]: 0 for one that could not be read. `renewed`: of the model as it is, not of the start.
    """

    measure: Callable[[StartView, Batch], Any]
    finish: Callable[..., Any]
    each: bool = False
    renewed: bool = False


def fisher(*, empirical: bool = False) -> Statistic:
    """The diagonal of the Fisher information of every trainable leaf: path -> float32 array of the leaf's shape.

    F = mean_x E_y (d log p(y | x) / d theta)^2 with y from the model's own predictions, summed exactly over all classes
    (Kirkpatrick et al. 2017, section 2.1; Pascanu & Bengio 2014), one backward pass per example and class; outputs of
    a regression are means of unit Gaussians. With `empirical` y is the label instead, one pass per example: another
    quantity, which vanishes where the model fits its labels (Kunstner et al. 2019).
    """
    def measure(view: StartView, batch: Batch) -> Any:
        def example(total: Flat, number: jax.Array) -> tuple[Flat, None]:
            one = {key: value[number][None] for key, value in batch.items()}
            squares = _squared_gradients(view, one, empirical)
            return jax.tree.map(lambda a, b: a + batch["weight"][number] * b, total, squares), None

        zeros = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in view.parameters.items()}
        squares, _ = jax.lax.scan(example, zeros, jnp.arange(len(batch["weight"])))
        return squares, batch["weight"].sum()

    return Statistic(measure, lambda sums: jax.tree.map(lambda leaf: leaf / jnp.maximum(sums[1], 1), sums[0]))


def _squared_gradients(view: StartView, one: Batch, empirical: bool) -> Flat:
    """Sum over outcomes of probability times squared gradient of the log-likelihood, for a batch of one example."""
    def scores(parameters: Flat) -> jax.Array:
        logits = view.logits(one, parameters)
        if logits.ndim > 2 or view.kind == "segmentation":
            raise UserError(f"the Fisher information needs one prediction per example, the head gives "
                            f"{list(logits.shape[1:])}; take a head of a classification, binary, multi-label or "
                            f"regression task")
        logits = logits.reshape(-1).astype(jnp.float32)
        return jax.nn.log_softmax(logits) if view.kind == "classification" else logits

    values, pull = jax.vjp(scores, view.parameters)
    labels = view.labels(one).reshape(-1) if empirical else None
    directions, weights = _outcomes(view.kind, values, labels)

    def outcome(total: Flat, number: jax.Array) -> tuple[Flat, None]:
        gradient = pull(directions[number])[0]
        return jax.tree.map(lambda a, g: a + weights[number] * jnp.square(g.astype(jnp.float32)), total, gradient), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), view.parameters)
    return jax.lax.scan(outcome, zeros, jnp.arange(len(weights)))[0]


def _outcomes(kind: str, scores: jax.Array, labels: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Directions [M, K] in the scores whose squared gradients, with weights [M], sum to the information."""
    if kind == "classification":
        if labels is not None:
            return _indicators(labels, len(scores)), jnp.ones(1)
        return jnp.eye(len(scores)), jnp.exp(scores)
    bits = kind in ("binary", "multi_label")
    mean = jax.nn.sigmoid(scores) if bits else scores
    if labels is not None:
        known = labels >= 0 if kind == "multi_label" else True
        return jnp.where(known, labels.astype(jnp.float32) - mean, 0.0)[None], jnp.ones(1)
    return jnp.eye(len(scores)), mean * (1 - mean) if bits else jnp.ones_like(mean)


def _indicators(labels: jax.Array, classes: int) -> jax.Array:
    """int [N] -> float32 [N, classes]; NaN for a label that is no class, so that it cannot go unnoticed."""
    valid = (labels >= 0) & (labels < classes)
    return jnp.where(valid[:, None], jax.nn.one_hot(labels, classes), jnp.nan)


def relationship(*, temperature: float = 1.0) -> Statistic:
    """p(source class | target class), float32 [K target, K source]: for every class of the term's task the mean of
    softmax(z / T) over its examples, z from the term's head, that of the source task (You et al. 2020, section 3,
    the direct approach). A class without examples has equal probabilities.

    Args:
      temperature: T, chosen on source data such that the source head is calibrated.
    """
    def measure(view: StartView, batch: Batch) -> Any:
        chosen = _indicators(view.labels(batch), view.classes) * batch["weight"][:, None]
        probabilities = jax.nn.softmax(view.logits(batch).astype(jnp.float32) / temperature)
        return jnp.matmul(chosen.T, probabilities, precision="highest"), chosen.sum(0)

    def finish(sums: Any) -> jax.Array:
        total, count = sums[0], sums[1][:, None]
        return jnp.where(count == 0, 1 / total.shape[1], total / jnp.maximum(count, 1))

    return Statistic(measure, finish)


def channel_weights(*, temperature: float = 1.0) -> Statistic:
    """How much each channel of the term's tap matters for its task, float32 [C] with mean 1.

    C softmax(r / T), r_c the rise of the mean loss when channel c is zero (Li et al. 2019, section 3; the factor C
    makes equal attention 1). One forward pass per channel: start the stage from a model whose head knows the task, such
    as a linear probe, else the rise says nothing.
    """
    def measure(view: StartView, batch: Batch) -> Any:
        def loss(mask: jax.Array) -> jax.Array:
            return view.loss(view.logits(batch, edits={view.tap: lambda tap: tap * mask.astype(tap.dtype)}), batch)

        channels = jax.eval_shape(view.features, batch).shape[-1]
        count = batch["weight"].sum()
        zeroed = jax.lax.map(lambda c: loss(1.0 - jax.nn.one_hot(c, channels)), jnp.arange(channels))
        return count * zeroed, count * loss(jnp.ones(channels)), count

    def finish(sums: Any) -> jax.Array:
        zeroed, whole, count = sums
        return len(zeroed) * jax.nn.softmax((zeroed - whole) / jnp.maximum(count, 1) / temperature)

    return Statistic(measure, finish)


def cluster_labels(*, rounds: int = 1) -> Statistic:
    """A class for every example of a stream, int32 [n]: that of the nearest centroid by cosine (Liang et al. 2020,
    section 3.3, eq. 4-6).

    Centroids are means of the features (the term's tap, with 1 appended and length 1) weighted by the probabilities of
    the term's head; then, `rounds` times, by the labels so found. A class that no example is given keeps no centroid
    in the next round, so that none can be assigned to it.
    """
    if rounds < 0:
        raise UserError(f"cluster_labels: rounds = {rounds} is negative; use 0 or more")

    def measure(view: StartView, batch: Batch) -> Any:
        return (view.features(batch).reshape(len(batch["weight"]), -1).astype(jnp.float32),
                jax.nn.softmax(view.logits(batch).astype(jnp.float32)))

    def finish(rows: Any, weights: jax.Array) -> jax.Array:
        features, shares = rows
        features = jnp.concatenate([features, jnp.ones((len(features), 1))], -1)
        features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        shares = shares * weights[:, None]
        for _ in range(rounds + 1):
            labels = jnp.argmax(_cosines(features, shares), axis=-1)
            shares = jax.nn.one_hot(labels, shares.shape[-1]) * weights[:, None]
        return labels.astype(jnp.int32)

    return Statistic(measure, finish, each=True, renewed=True)


def _cosines(features: jax.Array, shares: jax.Array) -> jax.Array:
    """Cosines [n, K] between unit features [n, d] and the centroids of shares [n, K]; -2 for a class without any."""
    sums = jnp.matmul(shares.T, features, precision="highest")
    lengths = jnp.linalg.norm(sums, axis=-1)
    cosines = jnp.matmul(features, sums.T, precision="highest") / jnp.maximum(lengths, 1e-12)
    return jnp.where(shares.sum(0) > 0, cosines, -2.0)


STATISTICS: dict[str, Callable[..., Statistic]] = {
    "fisher": fisher, "relationship": relationship, "channel_weights": channel_weights,
    "cluster_labels": cluster_labels}
