"""The classifiers that methods of adaptation are judged with: scikit-learn's, by short names."""

from __future__ import annotations

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from transfer_jax.core.errors import UserError, unknown

Array = np.ndarray

CLASSIFIERS = {
    "nn1": lambda c: KNeighborsClassifier(1, algorithm="brute"),
    "logistic": lambda c: LogisticRegression(C=c, max_iter=5000),
    "svm": lambda c: LinearSVC(C=c, max_iter=20000, random_state=0),
}
WEIGHTED = ("logistic", "svm")  # those that can weight examples


def fitted(name: str, c: float, x: Array, labels: Array, weights: Array | None = None) -> ClassifierMixin:
    """The classifier fitted to x [n, d] and labels [n].

    Args:
        c: of `logistic` and `svm`, as in scikit-learn: the inverse of the penalty.
        weights: float [n] or None.
    """
    if name not in CLASSIFIERS:
        raise unknown("classifier", name, CLASSIFIERS)
    if not c > 0:
        raise UserError(f"C is {c}; give a number above 0")
    model = CLASSIFIERS[name](c)
    if weights is None:
        return model.fit(x, labels)
    check_weighted(name)
    return model.fit(x, labels, sample_weight=weights)


def check_weighted(name: str) -> None:
    """A UserError for a classifier that cannot weight examples."""
    if name in CLASSIFIERS and name not in WEIGHTED:
        raise UserError(f"the classifier {name} cannot weight its examples; take {' or '.join(WEIGHTED)}")
