"""Few-shot classification: how far k labels a class carry fixed features, over episodes drawn from a seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation.classifiers import nearest_mean
from transfer_jax.evaluation.probes import Row

Array = np.ndarray


class Episode(NamedTuple):
    """Rows int: `support` [C * shots] gives the labels, `query` is asked about. They have none in common, or `query`
    are rows of another set."""

    support: Array
    query: Array


def episode(y: Array, shots: int, seed: int, number: int, queries: int = 15, asked: Array | None = None) -> Episode:
    """One draw, a function of (seed, number) alone: of each class `shots` for support, and up to `queries` others; or
    as many of a set of its own, whose labels are `asked`."""
    generator = np.random.default_rng([seed, shots, number])
    support, query = [], []
    for label in np.unique(y):
        rows = generator.permutation(np.flatnonzero(y == label))
        support.append(rows[:shots])
        others = rows[shots:] if asked is None else generator.permutation(np.flatnonzero(asked == label))
        query.append(others[:queries])
    return Episode(np.concatenate(support), np.concatenate(query))


def few_shot(train: tuple[Array, Array], test: tuple[Array, Array] | None = None, shots: tuple[int, ...] = (1, 5, 10),
             episodes: int = 100, seed: int = 0) -> list[Row]:
    """Accuracy of the nearest class mean from `shots` examples of each class; its mean over episodes with Student's
    95 % interval. Numbers of shots that leave a class of `train` no example to ask about are left out.

    Args:
        train: features [N, D] and labels [N]; support is drawn from it.
        test: what is asked about, 15 examples of each class at most in an episode; None: others of `train`.
    """
    if episodes < 2 or min(shots, default=0) < 1:
        raise UserError(f"few-shot needs 2 episodes and 1 shot or more, not {episodes} and "
                        f"{min(shots, default='none')}")
    y, asked = train[1], None if test is None else test[1]
    smallest = np.unique(y, return_counts=True)[1].min()
    rows = []
    for k in shots:
        if k > smallest - (test is None):
            continue
        scores = np.array([_score(train, test, episode(y, k, seed, number, asked=asked)) for number in range(episodes)])
        half = stdtrit(episodes - 1, 0.975) * scores.std(ddof=1) / np.sqrt(episodes)
        mean = scores.mean()
        rows.append(Row(f"{k} shot{'s' * (k > 1)}", float(mean), float(max(mean - half, 0)), float(min(mean + half, 1)),
                        episodes))
    return rows


def _score(train: tuple[Array, Array], test: tuple[Array, Array] | None, drawn: Episode) -> float:
    x, y = train
    asked, labels = test if test is not None else train
    votes = nearest_mean(x[drawn.support], y[drawn.support], int(y.max()) + 1, (None,), asked[drawn.query])
    return float((votes[0].argmax(1) == labels[drawn.query]).mean())
