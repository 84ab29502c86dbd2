"""What classifiers make of fixed features: each with its setting chosen on validation, in one table with intervals.

Rows are split into those that fit, those that choose and those that are answered: with test rows once, without them by
cross-validation. Settings are chosen on validation rows if there are any, else by folds of the fitting rows; the
classifier is then fitted to both. Of equally good settings the most regular one is taken.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.evaluation import classifiers
from transfer_jax.evaluation.logistic import logistic_path

Array = np.ndarray
MANY = 5000  # rows above which methods whose time grows with the square of them run only when asked for


class Split(NamedTuple):
    """Rows that fit and rows that are answered, both int."""

    fit: Array
    answer: Array


@dataclass(frozen=True)
class Probe:
    """A classifier with its grid, the most regular setting first.

    Attributes:
        votes: see `classifiers`.
        standardised: whether features are centred and scaled before; else they are taken as they are.
        costly: left out above `MANY` rows unless it is asked for.
    """

    votes: Callable[..., Array] | None
    settings: tuple[Any, ...]
    setting: str = ""
    standardised: bool = True
    costly: bool = False


PROBES = {
    "logistic": Probe(None, tuple(10.0 ** np.arange(1, -7, -1)), "penalty"),
    "ridge": Probe(classifiers.ridge, tuple(10.0 ** np.arange(2, -6, -1)), "penalty"),
    "lda": Probe(classifiers.discriminant, (0.9, 0.5, 0.2, 0.1, 0.03, 0.01, 1e-3, 1e-4), "shrinkage"),
    "linear_svm": Probe(classifiers.linear_svm, (1e-4, 1e-3, 1e-2, 0.1, 1.0), "C", costly=True),
    "rbf_svm": Probe(classifiers.rbf_svm, (0.1, 1.0, 10.0, 100.0), "C", costly=True),
    "knn": Probe(classifiers.nearest_neighbours, (50, 20, 10, 5, 3, 1), "k", standardised=False),
    "nearest_mean": Probe(classifiers.nearest_mean, (None,), standardised=False),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracy with its 95 % interval.

    Attributes:
        setting: the chosen one, as text; with cross-validation those of the folds.
        validation: mean accuracy on the rows that chose, None where there was nothing to choose.
        count: answered rows, or episodes.
    """

    method: str
    accuracy: float
    low: float
    high: float
    count: int
    setting: str = ""
    validation: float | None = None
    note: str = ""


def table(train: tuple[Array, Array], test: tuple[Array, Array] | None = None,
          validation: tuple[Array, Array] | None = None, methods: Sequence[str] = (), classes: int | None = None,
          folds: int = 5, seed: int = 0) -> list[Row]:
    """Accuracy of each method, with Wilson's interval (1927) over the answered examples.

    Args:
        train, test, validation: features float [N, D] and labels int [N] below `classes`. Without `test` every example
            of `train` (and `validation`) is answered once, by cross-validation; features are then standardised with
            the statistics of all.
        methods: names of `PROBES`; () takes all that the number of rows allows.
    """
    for name in methods:
        if name not in PROBES:
            raise unknown("method", name, PROBES)
    parts = [part for part in (train, validation, test) if part is not None]
    sizes = [len(labels) for _, labels in parts]
    fitting = sizes[0] + (sizes[1] if validation is not None else 0)
    x = np.concatenate([features for features, _ in parts])
    y = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    classes = classes or int(y.max()) + 1
    if len(np.unique(y[:fitting])) < 2:
        raise UserError("a probe needs examples of two classes or more to fit; widen the selection of the stream")
    outer, inner = plan(y, fitting, test is not None, sizes[0] if validation is not None else None, folds, seed)
    if not methods:
        methods = [name for name, probe in PROBES.items() if not probe.costly or fitting <= MANY]
    scaled = standardised(x, fitting)
    return [_row(name, scaled if PROBES[name].standardised else x, y, classes, outer, inner) for name in methods]


def plan(y: Array, fitting: int, tested: bool, train: int | None, folds: int,
         seed: int) -> tuple[list[Split], list[list[Split]]]:
    """The splits whose answers count, and for each of them the splits that choose its setting.

    Args:
        y: labels of all rows; the first `fitting` may fit, the others are answered if `tested`.
        train: number of rows before those of validation; None: validation by folds.
    """
    if folds < 2:
        raise UserError(f"{folds} folds: cross-validation needs 2 or more")
    rows = np.arange(len(y))
    outer = [Split(rows[:fitting], rows[fitting:])] if tested else split_rows(rows, y, folds, seed)
    if train is not None and tested:
        return outer, [[Split(rows[:train], rows[train:fitting])]]
    return outer, [split_rows(split.fit, y, folds, seed + 1) for split in outer]


def split_rows(rows: Array, y: Array, folds: int, seed: int) -> list[Split]:
    """Folds of `rows` drawn from `seed` alone, as equal in size and classes as can be; not more than rows."""
    folds = min(folds, len(rows))
    if folds < 2:
        raise UserError("a single example cannot be split for validation; give more examples")
    generator = np.random.default_rng(seed)
    shuffled = rows[generator.permutation(len(rows))]
    shuffled = shuffled[np.argsort(y[shuffled], kind="stable")]  # class after class
    number = np.arange(len(rows)) % folds
    return [Split(np.sort(shuffled[number != fold]), np.sort(shuffled[number == fold])) for fold in range(folds)]


def standardised(x: Array, fitting: int) -> Array:
    """Features with mean 0 and variance 1 over the first `fitting` rows, in their dtype; constant columns become 0."""
    mean = x[:fitting].mean(0, dtype=np.float64)
    scale = x[:fitting].std(0, dtype=np.float64)
    varies = scale > 1e-7 * np.maximum(np.abs(mean), 1)
    factor = np.where(varies, 1 / np.where(varies, scale, 1), 0)
    return ((x - mean.astype(x.dtype)) * factor.astype(x.dtype)).astype(x.dtype)


def _row(name: str, x: Array, y: Array, classes: int, outer: list[Split], inner: list[list[Split]]) -> Row:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        chosen, accuracies, votes = answers(name, x, y, classes, outer, inner)
    right = sum(int((vote.argmax(1) == y[split.answer]).sum()) for vote, split in zip(votes, outer, strict=True))
    count = sum(len(split.answer) for split in outer)
    low, high = wilson(right, count)
    settings = Counter(f"{setting:g}" for setting in chosen if setting is not None)
    note = "not converged" if any(issubclass(item.category, ConvergenceWarning) for item in caught) else ""
    return Row(name, right / count, low, high, count, ", ".join(settings), float(np.mean(accuracies)) if settings
               else None, note)


def answers(name: str, x: Array, y: Array, classes: int, outer: Sequence[Split],
            inner: Sequence[Sequence[Split]]) -> tuple[list[Any], list[float], list[Array]]:
    """For each outer split: the setting that its inner splits choose, its accuracy on them, and votes [M, C]."""
    probe = PROBES[name]
    flat = [split for splits in inner for split in splits]
    if name == "logistic":  # one program for all
        found = logistic_votes(x, y, classes, probe.settings, [*flat, *outer])
        inside, outside = found[:len(flat)], found[len(flat):]
    elif len(probe.settings) == 1:
        inside, outside = [], None
    else:
        inside, outside = [_votes(probe, x, y, classes, probe.settings, split) for split in flat], None
    chosen, accuracies, votes = [], [], []
    for place, split in enumerate(outer):
        best, accuracy = 0, float("nan")
        if inside:
            mine, inside = inside[:len(inner[place])], inside[len(inner[place]):]
            right = np.mean([(vote.argmax(-1) == y[held.answer]).mean(1)
                             for vote, held in zip(mine, inner[place], strict=True)], axis=0)
            best, accuracy = int(np.argmax(np.round(right, 12))), float(right.max())
        chosen.append(probe.settings[best])
        accuracies.append(accuracy)
        votes.append(outside[place][best] if outside else
                     _votes(probe, x, y, classes, (probe.settings[best],), split)[0])
    return chosen, accuracies, votes


def _votes(probe: Probe, x: Array, y: Array, classes: int, settings: tuple[Any, ...], split: Split) -> Array:
    return probe.votes(x[split.fit], y[split.fit], classes, settings, x[split.answer])


def logistic_votes(x: Array, y: Array, classes: int, penalties: Sequence[float],
                   splits: Sequence[Split]) -> list[Array]:
    """Logits [L, M, C] of each split for all penalties of the mean loss; one call of `logistic_path`."""
    used = np.unique(np.concatenate([split.fit for split in splits]))
    masks = np.stack([np.isin(used, split.fit) for split in splits])
    path = logistic_path(x[used], y[used], classes, np.asarray(penalties), masks)
    if not np.isfinite(np.asarray(path.objective)).all():
        raise UserError("logistic regression met values that are not finite; check the features")
    if float(np.max(path.gradient)) > 1e-3:
        from sklearn.exceptions import ConvergenceWarning

        warnings.warn("the logistic path has not converged", ConvergenceWarning, stacklevel=2)
    weights, bias = np.asarray(path.weights), np.asarray(path.bias)
    return [np.einsum("md,ldc->lmc", x[split.answer], weights[place], optimize=True) + bias[place][:, None]
            for place, split in enumerate(splits)]


def wilson(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of a proportion."""
    z = ndtri(0.5 + confidence / 2)
    share, extra = right / count, z ** 2 / count
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * np.sqrt(share * (1 - share) / count + extra / (4 * count))
    return float(max(middle - half, 0)), float(min(middle + half, 1))
