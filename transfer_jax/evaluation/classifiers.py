"""Classifiers on fixed features, each for a whole grid of one setting at once.

A classifier is a function (x [N, D], y int [N], classes, settings [G], query [M, D]) -> votes [G, M, C]; the largest
vote is the answer, and classes that are not among `y` get none. What depends on no setting is done once.

scikit-learn takes seconds to import, so it is where it is used.
"""

from __future__ import annotations

import numpy as np

from transfer_jax.core.errors import UserError

Array = np.ndarray


def ridge(x: Array, y: Array, classes: int, settings: tuple[float, ...], query: Array) -> Array:
    """Ridge regression onto targets of -1 and 1 (Hoerl and Kennard 1970); a setting is the penalty per example: that
    of scikit-learn's `RidgeClassifier(alpha=n * setting)`."""
    center, targets = x.mean(0, dtype=np.float64), 2 * np.eye(classes)[y] - 1
    x, query = x - center, query - center
    offset = targets.mean(0)
    if x.shape[1] <= len(x):
        values, axes = np.linalg.eigh(x.T @ x)
        products = axes.T @ (x.T @ (targets - offset))
        right = query @ axes
    else:  # the same in the space of the examples
        values, axes = np.linalg.eigh(x @ x.T)
        products = axes.T @ (targets - offset)
        right = (query @ x.T) @ axes
    values = np.maximum(values, 0)
    found = np.stack([right @ (products / (values + len(x) * setting)[:, None]) + offset for setting in settings])
    return _only_seen(found, y)


def discriminant(x: Array, y: Array, classes: int, settings: tuple[float, ...], query: Array) -> Array:
    """Linear discriminant analysis (Fisher 1936) with the covariance shrunk towards a multiple of the identity by the
    share `setting` > 0: that of scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage=setting)`."""
    x, query = np.asarray(x, np.float64), np.asarray(query, np.float64)
    onehot = np.eye(classes)[y]
    counts = onehot.sum(0)
    means = onehot.T @ x / np.maximum(counts, 1)[:, None]
    within = x - means[y]
    with np.errstate(divide="ignore"):
        priors = np.log(counts / len(x))
    # The covariance within classes has at most N axes of its own; in all others it is the shrunk part alone.
    _, singular, axes = np.linalg.svd(within, full_matrices=False) if len(x) < x.shape[1] else _axes(within)
    values = singular ** 2 / len(x)
    level = values.sum() / x.shape[1]
    if level == 0:
        raise UserError("linear discriminant analysis needs classes that vary; give more examples of each class")
    found = []
    for setting in settings:
        base = setting * level
        gains = 1 / ((1 - setting) * values + base) - 1 / base
        weights = means / base + (means @ axes.T * gains) @ axes  # [C, D]
        found.append(query @ weights.T - 0.5 * (means * weights).sum(1) + priors)
    return np.stack(found)


def _axes(rows: Array) -> tuple[None, Array, Array]:
    values, axes = np.linalg.eigh(rows.T @ rows)
    return None, np.sqrt(np.maximum(values, 0)), axes.T


def nearest_neighbours(x: Array, y: Array, classes: int, settings: tuple[int, ...], query: Array,
                       block: int = 1024) -> Array:
    """The vote of the `setting` most similar examples by cosine, each with the weight 1 + cosine (Cover and Hart
    1967; weights Dudani 1976). More neighbours than examples are all examples."""
    x, query = unit(x), unit(query)
    most = min(max(settings), len(x))
    votes = np.zeros((len(settings), len(query), classes))
    for start in range(0, len(query), block):
        similarity = query[start:start + block] @ x.T
        near = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        weights = np.take_along_axis(similarity, near, 1)
        order = np.argsort(-weights, axis=1, kind="stable")
        near, weights = np.take_along_axis(near, order, 1), 1 + np.take_along_axis(weights, order, 1)
        rows = np.arange(len(near))[:, None]
        for place, setting in enumerate(settings):
            np.add.at(votes[place, start:start + block], (rows, y[near[:, :setting]]), weights[:, :setting])
    return votes


def nearest_mean(x: Array, y: Array, classes: int, settings: tuple[None, ...], query: Array) -> Array:
    """Minus the squared distance to the mean of each class, of features of unit length (prototypes, Snell et al.
    2017)."""
    x, query = unit(x), unit(query)
    onehot = np.eye(classes)[y]
    means = onehot.T @ x / np.maximum(onehot.sum(0), 1)[:, None]
    return _only_seen((2 * query @ means.T - (means ** 2).sum(1))[None], y)


def linear_svm(x: Array, y: Array, classes: int, settings: tuple[float, ...], query: Array) -> Array:
    """scikit-learn's `LinearSVC(C=setting)`."""
    from sklearn.svm import LinearSVC

    return _answers([LinearSVC(C=setting, max_iter=5000, random_state=0) for setting in settings], x, y, classes, query)


def rbf_svm(x: Array, y: Array, classes: int, settings: tuple[float, ...], query: Array) -> Array:
    """scikit-learn's `SVC(C=setting)`: radial basis functions, gamma by the variance of the features."""
    from sklearn.svm import SVC

    return _answers([SVC(C=setting) for setting in settings], x, y, classes, query)


def unit(x: Array) -> Array:
    """Rows of length one; rows of zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(x.dtype).tiny)


def _answers(models: list, x: Array, y: Array, classes: int, query: Array) -> Array:
    return np.eye(classes)[np.stack([model.fit(x, y).predict(query) for model in models])]


def _only_seen(votes: Array, y: Array) -> Array:
    votes[..., np.setdiff1d(np.arange(votes.shape[-1]), y)] = -np.inf
    return votes
