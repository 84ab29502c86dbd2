"""From features to points in the plane, and one number that says what the eye cannot: how classes and domains mix."""

from __future__ import annotations

import numpy as np

MOST_POINTS = 500  # t-SNE costs about a second for so many
NEIGHBOURS = 10


def to_plane(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features [n, D] -> points [n, 2] by PCA (at most 50 axes), then t-SNE (van der Maaten and Hinton 2008).

    Deterministic for a seed. Fewer than 5 rows, or features that do not vary, are only projected by PCA.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = np.nan_to_num(np.asarray(features, np.float64))
    features = features - features.mean(axis=0)
    if features.std() < 1e-12:
        return np.zeros((len(features), 2))
    reduced = PCA(min(50, *features.shape), svd_solver="full").fit_transform(features / features.std())
    if len(reduced) < 5:
        return np.pad(reduced, ((0, 0), (0, 2)))[:, :2]
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, max_iter=500)
    # Many threads wait for one another on so few points, and for seconds where other work shares the cores.
    with threadpool_limits(1):
        return model.fit_transform(reduced.astype(np.float32))


def neighbour_share(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean share of the 10 nearest neighbours (cosine, all dimensions) that carry the same label; [n, D], [n]."""
    features = np.nan_to_num(np.asarray(features, np.float64))
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = features @ features.T
    np.fill_diagonal(similarity, -np.inf)
    count = min(NEIGHBOURS, len(features) - 1)
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    return float((np.asarray(labels)[nearest] == np.asarray(labels)[:, None]).mean())


def pick(labels: np.ndarray, domains: np.ndarray, most: int = MOST_POINTS, seed: int = 0) -> np.ndarray:
    """Rows to draw, [<= most], ascending: every domain gets an equal share, drawn at random."""
    random = np.random.default_rng(seed)
    names = np.unique(domains)
    chosen = []
    for name in names:
        rows = np.flatnonzero(domains == name)
        chosen.append(random.permutation(rows)[:most // len(names)])
    return np.sort(np.concatenate(chosen)) if chosen else np.arange(len(labels))[:most]
