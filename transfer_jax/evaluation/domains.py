"""How far apart are two domains, and how much likelier is an example in one than in the other? Both are told by a
linear classifier of the two that answers only examples which it was not fitted to."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation.logistic import logistic_path
from transfer_jax.evaluation.probes import split_rows, standardised

Array = np.ndarray
PENALTIES = (1.0, 0.1, 0.01, 1e-3)  # of the mean loss, on standardised features
FOLDS = 5
TOLERANCE = 1e-4


@dataclass(frozen=True)
class DomainClassifier:
    """Answers of a logistic regression of two domains, each example answered by the fold that was fitted without it.

    Attributes:
        source, target: float64 [N] and [M], logarithm of the odds that the example is of the target, both domains
            being equally frequent: the logarithm of the density ratio target / source.
    """

    source: Array
    target: Array

    @functools.cached_property
    def error(self) -> float:
        """Share of wrong answers, mean of the two domains; an undecided answer is half wrong."""
        wrong = [np.mean(odds > 0) + np.mean(odds == 0) / 2 for odds in (self.source, -self.target)]
        return float(np.mean(wrong))

    @property
    def distance(self) -> float:
        """The proxy A-distance 2 (1 - 2 error) (Ben-David et al. 2007), not below 0: 0 alike, 2 told apart without
        error."""
        return max(0.0, 2 * (1 - 2 * self.error))

    def weights(self, bound: float | None = None) -> Array:
        """Density ratios target / source of the source examples, float64 [N], cut off at `bound`.

        A finite sample of a heavy-tailed ratio has no mean to speak of. The default bound sqrt(N) lets the bias of the
        cut vanish as N grows, and the variance too (truncated importance sampling, Ionides 2008).
        """
        bound = len(self.source) ** 0.5 if bound is None else bound
        return np.exp(np.minimum(self.source, np.log(bound)))


def classify_domains(source: Array, target: Array, folds: int = FOLDS, seed: int = 0) -> DomainClassifier:
    """Fits a classifier of two domains by cross-validation; its penalty is the one with the least log-loss.

    Args:
        source, target: features, float [N, D] and [M, D].
        folds: parts of the rows; not more than the smaller domain has rows.

    Raises:
        UserError: fewer than two rows, other numbers of columns, or values that are not finite.
    """
    for name, rows in (("source", source), ("target", target)):
        if rows.ndim != 2 or len(rows) < 2:
            raise UserError(f"a classifier of domains needs features [n, D] of two examples or more of each, the "
                            f"{name} has the shape {list(rows.shape)}")
        if not np.isfinite(rows).all():
            raise UserError(f"features of the {name} are not finite, so that its domain cannot be told; check the "
                            f"weights and the normalisation of the stream")
    if source.shape[1] != target.shape[1]:
        raise UserError(f"source and target have {source.shape[1]} and {target.shape[1]} features; take the same tap")
    count = len(source)
    x = np.concatenate([source, target]).astype(np.float32)
    x, y = standardised(x, len(x)), np.repeat([0, 1], [count, len(target)])
    splits = split_rows(np.arange(len(x)), y, min(folds, count, len(target)), seed)
    masks = np.stack([np.isin(np.arange(len(x)), split.fit) for split in splits])
    path = logistic_path(x, y, 2, np.array(PENALTIES), masks, TOLERANCE)
    weights, bias = (np.asarray(part, np.float64) for part in (path.weights, path.bias))
    odds = np.empty((len(PENALTIES), len(x)))
    for fold, split in enumerate(splits):
        answers = x[split.answer].astype(np.float64) @ (weights[fold, ..., 1] - weights[fold, ..., 0]).T
        prior = np.log(np.sum(y[split.fit] == 1) / np.sum(y[split.fit] == 0))
        odds[:, split.answer] = (answers + bias[fold, :, 1] - bias[fold, :, 0]).T - prior
    losses = np.logaddexp(0, np.where(y == 1, -odds, odds))
    chosen = odds[np.argmin(losses[:, :count].mean(1) + losses[:, count:].mean(1))]
    # Where features tell nothing, what the tolerance of the fit leaves over must not decide.
    chosen = np.where(np.abs(chosen) < 10 * TOLERANCE, 0.0, chosen)
    return DomainClassifier(chosen[:count], chosen[count:])


def a_distance(source: Array, target: Array, seed: int = 0) -> float:
    """The proxy A-distance of features [N, D] and [M, D] of two domains; see `DomainClassifier.distance`."""
    return classify_domains(source, target, seed=seed).distance
