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
import optax

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
    `calibrated_on`: a stream of the head's own task, on which a temperature is fitted that divides the view's logits.
    `after`: a stage before, whose own such statistic counts on with the factor `decay`.
    """

    measure: Callable[[StartView, Batch], Any]
    finish: Callable[..., Any]
    each: bool = False
    renewed: bool = False
    calibrated_on: str | None = None
    after: str | None = None
    decay: float = 1.0


def fisher(*, empirical: bool = False, after: str | None = None, decay: float = 1.0) -> Statistic:
    """The diagonal of the Fisher information of every trainable leaf: path -> float32 array of the leaf's shape.

    F = mean_x E_y (d log p(y | x) / d theta)^2 with y from the model's own predictions, summed exactly over all classes
    (Kirkpatrick et al. 2017, section 2.1; Pascanu & Bengio 2014), one backward pass per example and class; outputs of
    a regression are means of unit Gaussians. With `empirical` y is the label instead, one pass per example: another
    quantity, which vanishes where the model fits its labels (Kunstner et al. 2019).

    Args:
      after, decay: online EWC over a sequence of tasks (Schwarz et al. 2018, section 3): `decay` times the information
        that the stage `after` held, plus F. Leaves that were not held there count as 0.
    """
    if not 0 <= decay <= 1:
        raise UserError(f"fisher: decay = {decay} is no factor of what is known already; use a number from 0 to 1")

    def measure(view: StartView, batch: Batch) -> Any:
        def example(total: Flat, number: jax.Array) -> tuple[Flat, None]:
            one = {key: value[number][None] for key, value in batch.items()}
            squares = _squared_gradients(view, one, empirical)
            return jax.tree.map(lambda a, b: a + batch["weight"][number] * b, total, squares), None

        zeros = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in view.parameters.items()}
        squares, _ = jax.lax.scan(example, zeros, jnp.arange(len(batch["weight"])))
        return squares, batch["weight"].sum()

    return Statistic(measure, lambda sums: jax.tree.map(lambda leaf: leaf / jnp.maximum(sums[1], 1), sums[0]),
                     after=after, decay=decay)


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


def relationship(*, temperature: float = 1.0, calibrated_on: str | None = None, reverse: bool = False) -> Statistic:
    """p(source class | target class), float32 [K target, K source], from p_s(x) = softmax(z / T), z from the term's
    head, that of the source task (You et al. 2020, section 3.2).

    Directly it is the mean of p_s(x) over the examples of each class of the term's task. With `reverse` it is found
    from p(target class | source class) by Bayes's rule: a logistic regression learns the target class from p_s(x), is
    asked about each source class alone, and the mean of p_s(x) over all examples is the prior. Its penalty is the one
    of `PENALTIES` whose predictions are likeliest on held-out fifths. A class without examples has equal probabilities.

    Args:
      temperature: T.
      calibrated_on: in its place, a stream of the source task that was not trained on: T of the highest likelihood
        there (Guo et al. 2017).
    """
    if calibrated_on is not None and temperature != 1.0:
        raise UserError("relationship: temperature and calibrated_on both say how sharp the head's predictions are; "
                        "leave one out")

    def known(view: StartView, batch: Batch) -> tuple[jax.Array, jax.Array]:
        probabilities = jax.nn.softmax(view.logits(batch).astype(jnp.float32) / temperature)
        return probabilities, _indicators(view.labels(batch), view.classes)

    def measure(view: StartView, batch: Batch) -> Any:
        probabilities, chosen = known(view, batch)
        chosen = chosen * batch["weight"][:, None]
        return jnp.matmul(chosen.T, probabilities, precision="highest"), chosen.sum(0)

    def finish(sums: Any) -> jax.Array:
        total, count = sums[0], sums[1][:, None]
        return jnp.where(count == 0, 1 / total.shape[1], total / jnp.maximum(count, 1))

    if reverse:
        return Statistic(known, lambda rows, weights: reversed_relationship(*rows, weights), each=True,
                         calibrated_on=calibrated_on)
    return Statistic(measure, finish, calibrated_on=calibrated_on)


PENALTIES = tuple(10.0 ** -power for power in range(1, 7))  # of the mean loss, the most regular first
FOLDS, ITERATIONS, TOLERANCE = 5, 500, 1e-6


def reversed_relationship(probabilities: jax.Array, chosen: jax.Array, weights: jax.Array) -> jax.Array:
    """p(source class | target class) [K target, K source] by Bayes's rule; see `relationship`.

    Args:
      probabilities: p_s(x), [n, K source].
      chosen: target classes, one-hot [n, K target].
      weights: [n], 1 or 0.
    """
    fold = jnp.arange(len(weights)) % FOLDS
    held = jnp.stack([weights * (fold == number) for number in range(FOLDS)])
    penalties = jnp.asarray(PENALTIES)

    def fitted(kept: jax.Array, penalty: jax.Array) -> jax.Array:
        return _source_logits(probabilities, chosen, kept, penalty)

    def likelihood(part: jax.Array, penalty: jax.Array) -> jax.Array:
        logits = jnp.matmul(probabilities, fitted(weights - part, penalty), precision="highest")
        return jnp.sum(part * jnp.sum(chosen * jax.nn.log_softmax(logits), -1))

    scores = jax.vmap(jax.vmap(likelihood, (None, 0)), (0, None))(held, penalties).sum(0)
    given = jax.nn.log_softmax(fitted(weights, penalties[jnp.argmax(scores)]))  # log p(target | source)
    prior = jnp.log(jnp.maximum(jnp.sum(weights[:, None] * probabilities, 0), jnp.finfo(jnp.float32).tiny))
    found = jax.nn.softmax((given + prior[:, None]).T)
    count = jnp.sum(weights[:, None] * chosen, 0)[:, None]
    return jnp.where(count == 0, 1 / found.shape[1], found) + 0 * count.sum()  # NaN where a label is no class


def _source_logits(probabilities: jax.Array, chosen: jax.Array, kept: jax.Array, penalty: jax.Array) -> jax.Array:
    """Logits of the target classes for each source class alone [K source, K target]: W + b of the minimum of mean
    cross-entropy + penalty / 2 |W|^2 over the examples of weights `kept`, by L-BFGS (b is free)."""
    shares = kept / jnp.maximum(kept.sum(), 1)

    def loss(parameters: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = jnp.matmul(probabilities, parameters[0], precision="highest") + parameters[1]
        losses = -jnp.sum(chosen * jax.nn.log_softmax(logits), -1)
        return jnp.sum(shares * losses) + penalty / 2 * jnp.sum(parameters[0] ** 2)

    solver, slope = optax.lbfgs(), optax.value_and_grad_from_state(loss)

    def step(carried: tuple[Any, Any]) -> tuple[Any, Any]:
        parameters, state = carried
        value, gradient = slope(parameters, state=state)
        change, state = solver.update(gradient, state, parameters, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(parameters, change), state

    def going(carried: tuple[Any, Any]) -> jax.Array:
        count, gradient = (optax.tree.get(carried[1], name) for name in ("count", "grad"))
        return (count == 0) | (count < ITERATIONS) & (optax.tree.norm(gradient, ord=jnp.inf) > TOLERANCE)

    start = jnp.zeros((probabilities.shape[1], chosen.shape[1])), jnp.zeros(chosen.shape[1])
    (weights, bias), _ = jax.lax.while_loop(going, step, (start, solver.init(start)))
    return weights + bias


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
