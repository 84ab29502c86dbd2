"""TrAdaBoost: boosting that trusts target examples it gets wrong, and source examples it gets right."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from transfer_jax.core.errors import UserError

Array = np.ndarray


class Model(Protocol):
    """A fitted classifier."""

    def predict(self, x: Array) -> Array:
        """x [n, d] -> int [n]."""


Learner = Callable[[Array, Array, Array], Model]  # (x, labels, weights) -> fitted


class Boosted(NamedTuple):
    """Learners of the second half of the rounds, the votes of each, and the weights [n_s + n_t] at the end."""

    learners: tuple[Model, ...]
    votes: tuple[float, ...]
    weights: Array
    classes: int

    def predict(self, x: Array) -> Array:
        """int [n]: the class with most votes, the larger one of equals; where no learner was better than chance all
        votes are the same."""
        votes = np.array(self.votes) if any(self.votes) else np.ones(len(self.votes))
        scores = sum(vote * np.eye(self.classes)[model.predict(x)]
                     for vote, model in zip(votes, self.learners, strict=True))
        return self.classes - 1 - scores[:, ::-1].argmax(1)


def tradaboost(source: Array, labels: Array, target: Array, target_labels: Array, learner: Learner, *,
               rounds: int = 20) -> Boosted:
    """Transfer AdaBoost (Dai et al. 2007, figure 2), for two classes and, by votes for each class, for more.

    Each round a learner is fitted to all examples with their weights. Its error is that on the target alone. Source
    examples that it gets wrong lose weight by 1 / (1 + sqrt(2 ln n_s / rounds)), target examples that it gets wrong
    gain by (1 - error) / error. Only learners of the second half vote, each with log((1 - error) / error).

    An error of 0 would give an infinite vote: it counts as half an example. An error of one half or more would turn
    the factor around: it counts as one half, so that such a learner has no vote and moves no target weight.

    Args:
        source, target: [n_s, d], and [n_t, d] of the labelled target examples.
        labels, target_labels: int [n_s], [n_t], from 0.
        learner: (x, labels, weights with sum one) -> model.
    """
    if rounds < 1:
        raise UserError(f"TrAdaBoost with {rounds} rounds; give 1 or more")
    if not len(target):
        raise UserError("TrAdaBoost learns from some labelled examples of the target; give labels for some of them")
    x, y = np.concatenate([source, target]), np.concatenate([labels, target_labels])
    n_s, n_t = len(source), len(target)
    weights = np.ones(n_s + n_t)
    lowered = 1 / (1 + np.sqrt(2 * np.log(n_s) / rounds))
    learners, votes = [], []
    for _ in range(rounds):
        weights = weights / weights.sum()
        model = learner(x, y, weights)
        wrong = model.predict(x) != y
        share = weights[n_s:].sum()
        error = (weights[n_s:] * wrong[n_s:]).sum() / share if share > 0 else 0.5
        error = min(max(error, 0.5 / n_t), 0.5)
        odds = (1 - error) / error
        weights = weights * np.where(wrong, np.repeat([lowered, odds], [n_s, n_t]), 1.0)
        learners.append(model)
        votes.append(float(np.log(odds)))
    second = (rounds + 1) // 2 - 1  # the rounds ceil(T/2) to T of the paper, which counts from 1
    return Boosted(tuple(learners[second:]), tuple(votes[second:]), weights / weights.sum(), int(y.max()) + 1)
