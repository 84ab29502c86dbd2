"""Few-shot classification: how far k labels a class carry fixed features, over episodes drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.evaluation import classifiers
from transfer_jax.evaluation.logistic import logistic_episodes
from transfer_jax.evaluation.probes import Row

Array = np.ndarray
Learner = Callable[[Array, Array, int, Sequence[Array]], list[Array]]
MANY = 1000  # examples of an episode above which what takes an iteration or a decomposition runs only when asked for


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


def each(votes: Callable[..., Array], setting: Callable[[int], Any]) -> Learner:
    """A classifier of `classifiers`, one episode after the other; `setting`: of the number of its examples."""
    def answer(support: Array, labels: Array, count: int, queries: Sequence[Array]) -> list[Array]:
        return [votes(x, labels, count, (setting(len(labels)),), query)[0].argmax(1)
                for x, query in zip(support, queries, strict=True)]

    return answer


def logistic(support: Array, labels: Array, count: int, queries: Sequence[Array]) -> list[Array]:
    """Multinomial logistic regression with the penalty of scikit-learn's `LogisticRegression(C=1)`, all episodes in one
    program."""
    weights, bias = logistic_episodes(support, labels, count, 1 / len(labels))
    return [(query @ w + b).argmax(1) for query, w, b in zip(queries, weights, bias, strict=True)]


# (support [E, n, D], labels int [n], number of classes, queries of each episode [m, D]) -> answers int [m] of each. An
# episode has nothing to choose settings on: penalties are usual ones for features of unit length (Tian et al. 2020).
FEW_SHOT: dict[str, Learner] = {
    "nearest_mean": each(classifiers.nearest_mean, lambda rows: None),
    "knn": each(classifiers.nearest_neighbours, lambda rows: 1),
    "ridge": each(classifiers.ridge, lambda rows: 1 / rows),
    "logistic": logistic,
}
COSTLY = ("ridge", "logistic")


def few_shot(train: tuple[Array, Array], test: tuple[Array, Array] | None = None, shots: Sequence[int] = (1, 5, 10),
             episodes: int = 100, seed: int = 0, learners: Sequence[str] = ()) -> list[Row]:
    """Accuracy of each classifier from `shots` examples of each class, on features of unit length; its mean over
    episodes, the same for all classifiers, with Student's 95 % interval. Numbers of shots that leave a class of `train`
    no example to ask about are left out.

    Args:
        train: features [N, D] and labels [N]; support is drawn from it.
        test: what is asked about, 15 examples of each class at most in an episode; None: others of `train`.
        learners: names of `FEW_SHOT`; () takes all that the size of the episodes allows.
    """
    for name in learners:
        if name not in FEW_SHOT:
            raise unknown("few-shot classifier", name, FEW_SHOT)
    if episodes < 2 or min(shots, default=0) < 1:
        raise UserError(f"few-shot needs 2 episodes and 1 shot or more, not {episodes} and "
                        f"{min(shots, default='none')}")
    train, test = ((classifiers.unit(part[0]), part[1]) if part is not None else None for part in (train, test))
    classes, asked = len(np.unique(train[1])), None if test is None else test[1]
    rows = []
    for k in shots:
        if k > most_shots(train[1], test is not None):
            continue
        drawn = [episode(train[1], k, seed, number, asked=asked) for number in range(episodes)]
        for name in learners or [name for name in FEW_SHOT if name not in COSTLY or k * classes <= MANY]:
            rows.append(_row(f"{name}, {k} shot{'s' * (k > 1)}", _scores(FEW_SHOT[name], train, test, drawn)))
    return rows


def most_shots(y: Array, tested: bool) -> int:
    """The largest number of shots that all classes of `y` allow; without a test set each has one to ask about."""
    return int(np.unique(y, return_counts=True)[1].min()) - (not tested)


def _scores(learner: Learner, train: tuple[Array, Array], test: tuple[Array, Array] | None,
            drawn: Sequence[Episode]) -> Array:
    """Accuracy of each episode [E]."""
    (x, y), (asked, labels) = train, test if test is not None else train
    classes, numbers = np.unique(y[drawn[0].support], return_inverse=True)  # the same in every episode
    support = np.stack([x[episode.support] for episode in drawn])
    found = learner(support, numbers, len(classes), [asked[episode.query] for episode in drawn])
    return np.array([(classes[answer] == labels[episode.query]).mean()
                     for answer, episode in zip(found, drawn, strict=True)])


def _row(name: str, scores: Array) -> Row:
    count, mean = len(scores), scores.mean()
    half = stdtrit(count - 1, 0.975) * scores.std(ddof=1) / np.sqrt(count)
    return Row(name, float(mean), float(max(mean - half, 0)), float(min(mean + half, 1)), count)
