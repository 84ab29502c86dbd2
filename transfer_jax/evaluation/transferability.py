"""Transferability: how well will a source model serve a target task, told by one pass over the labelled target data?

Every score is a pure function of features [N, D] or of the source's class probabilities [N, Z], and of labels [N] that
are whole numbers; they are computed in float64, and larger is better. None is reliable alone: `transferability` gives
all of them, to be looked at together and beside a linear probe.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import pdist
from scipy.special import xlogy
from scipy.stats import rankdata
from sklearn.covariance import ledoit_wolf
from sklearn.mixture import GaussianMixture

Array = np.ndarray


def transferability(features: Array, labels: Array, probabilities: Array | None = None,
                    names: tuple[str, ...] = ()) -> dict[str, float]:
    """Scores by name: all that the arguments allow, or only `names`.

    Args:
        features: [N, D] of the source model on the target data.
        labels: int [N], the target's classes.
        probabilities: [N, Z] of the source's own classes, for LEEP and NCE.
    """
    scores = dict.fromkeys(FEATURE_SCORES, features)
    if probabilities is not None:
        scores |= dict.fromkeys(PREDICTION_SCORES, probabilities)
    strange = set(names) - set(scores)
    if strange:
        raise ValueError(f"no score {sorted(strange)[0]!r} for these arguments; there are {', '.join(scores)}")
    functions = FEATURE_SCORES | PREDICTION_SCORES
    return {name: functions[name](scores[name], labels) for name in names or scores}


def leep(probabilities: Array, labels: Array) -> float:
    """Log expected empirical prediction (Nguyen et al. 2020, eq. 2): the mean log-likelihood of the labels under
    P(y|z) of the source's classes z. Never above 0. Source classes without any mass have no say."""
    theta, onehot = _checked(probabilities, labels)
    joint = onehot.T @ theta  # [C, Z]
    mass = joint.sum(0)
    conditional = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    return float(np.log(((theta @ conditional.T) * onehot).sum(1)).mean())


def nce(probabilities: Array, labels: Array) -> float:
    """Negative conditional entropy -H(Y|Z) of the labels given the source's hard prediction (Tran et al. 2019)."""
    theta, onehot = _checked(probabilities, labels)
    joint = onehot.T @ np.eye(theta.shape[1])[theta.argmax(1)] / len(theta)
    return float(xlogy(joint, joint).sum() - xlogy(joint.sum(0), joint.sum(0)).sum())


def nleep(features: Array, labels: Array, energy: float = 0.8, components_per_class: int = 5, seed: int = 0) -> float:
    """LEEP of the clusters of a Gaussian mixture in place of source classes (Li et al. 2021): works without a head.

    Features are first reduced to the principal components that hold the share `energy` of the variance. Covariances
    are diagonal there, so that many components need not many examples.
    """
    f, onehot = _checked(features, labels)
    reduced = principal_components(f, energy=energy)
    count = min(components_per_class * onehot.shape[1], len(np.unique(reduced, axis=0)))
    mixture = GaussianMixture(count, covariance_type="diag", random_state=seed, reg_covar=1e-6 * reduced.var() + 1e-12)
    return leep(mixture.fit(reduced).predict_proba(reduced), labels)


def logme(features: Array, labels: Array) -> float:
    """Logarithm of the maximum evidence of Bayesian linear regression to each class, per example (You et al. 2021).

    With w ~ N(0, 1/alpha) and noise of variance 1/beta the evidence is maximal in beta at N / Q(t), t = alpha / beta,
    Q(t) = min_w |y - Fw|^2 + t |w|^2; what is left is a function of t alone, maximised here directly instead of by a
    fixed point that may stop early. Eigenvalues 0 of F'F cancel, so D > N is nothing special.
    """
    f, onehot = _checked(features, labels)
    n = len(f)
    u, singular, _ = np.linalg.svd(f, full_matrices=False)
    kept = singular > singular[0] * max(f.shape) * np.finfo(float).eps
    s = singular[kept] ** 2
    z2 = (u[:, kept].T @ onehot) ** 2  # [r, C]
    rest = np.maximum((onehot ** 2).sum(0) - z2.sum(0), 0.0)

    def evidence(log_t: Array) -> Array:
        """[..., C] of log t [..., C]."""
        t = np.exp(log_t)[..., None, :]
        q = rest + (t * z2 / (s[:, None] + t)).sum(-2)
        return (n * np.log(n / np.maximum(q, np.finfo(float).tiny)) - np.log1p(s[:, None] / t).sum(-2)
                - n * (1 + np.log(2 * np.pi))) / (2 * n)

    grid = np.linspace(np.log(s.min()) - 14, np.log(s.max()) + 14, 200)
    return float(_maximum(evidence, grid, onehot.shape[1]).mean())


def _maximum(function: Callable[[Array], Array], grid: Array, columns: int) -> Array:
    """The largest value of each column of `function`: the best of a grid, refined by golden sections."""
    rough = np.stack([function(np.full(columns, point)) for point in grid])
    best = rough.argmax(0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        better = function(left) > function(right)
        low, high = np.where(better, low, left), np.where(better, right, high)
    return np.maximum(function((low + high) / 2), rough.max(0))


def h_score(features: Array, labels: Array) -> float:
    """tr(cov(f)^-1 cov(E[f|y])) (Bao et al. 2019, eq. 5). Where N is not well above D use `regularized_h_score`."""
    f, onehot = _checked(features, labels)
    centered = f - f.mean(0)
    between = _class_means(centered, onehot)
    return float(np.trace(np.linalg.pinv(centered.T @ centered / len(f), rcond=1e-10, hermitian=True) @ between))


def regularized_h_score(features: Array, labels: Array) -> float:
    """The H-score with Ledoit-Wolf's shrunk covariance (Ibrahim et al. 2021): steady also for D > N."""
    f, onehot = _checked(features, labels)
    centered = f - f.mean(0)
    covariance, shrinkage = ledoit_wolf(centered, assume_centered=True)
    return float((1 - shrinkage) * np.trace(np.linalg.solve(covariance, _class_means(centered, onehot))))


def _class_means(centered: Array, onehot: Array) -> Array:
    """[D, D], the covariance of E[f|y] when y is drawn like the labels."""
    counts = onehot.sum(0)
    means = onehot.T @ centered / counts[:, None]
    return means.T @ (means * counts[:, None]) / len(centered)


def transrate(features: Array, labels: Array, distortion: float = 1e-4) -> float:
    """Mutual information of features and labels by coding rates, R(Z) - sum_c n_c/n R(Z_c) (Huang et al. 2022), with
    R(Z) = logdet(I + Z'Z / (n distortion)) / 2 and Z centred over all classes and scaled to mean square norm 1."""
    f, onehot = _checked(features, labels)
    z = f - f.mean(0)
    z = z / np.sqrt((z ** 2).sum(1).mean())

    def rate(rows: Array) -> float:
        gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T  # the same determinant
        return 0.5 * np.linalg.slogdet(np.eye(len(gram)) + gram / (len(rows) * distortion))[1]

    members = [z[column > 0] for column in onehot.T]
    return float(rate(z) - sum(len(rows) / len(z) * rate(rows) for rows in members))


def gbc(features: Array, labels: Array, dimensions: int = 64, spherical: bool = True) -> float:
    """Gaussian Bhattacharyya coefficient: minus the overlap of the classes, summed over ordered pairs (Pandy et al.
    2022, eqs. 1-3), in the first principal components, with one variance per class, or one per class and component."""
    f, onehot = _checked(features, labels)
    reduced = principal_components(f, dimensions=dimensions)
    means = np.stack([reduced[column > 0].mean(0) for column in onehot.T])
    variances = np.stack([reduced[column > 0].var(0) for column in onehot.T])
    if spherical:
        variances = np.broadcast_to(variances.mean(1, keepdims=True), variances.shape)
    variances = variances + 1e-8 * reduced.var()  # a class of one example has none of its own
    middle = (variances[:, None] + variances[None]) / 2
    distance = ((means[:, None] - means[None]) ** 2 / middle).sum(-1) / 8 + 0.5 * (
        np.log(middle) - (np.log(variances[:, None]) + np.log(variances[None])) / 2).sum(-1)
    return float(-(np.exp(-distance).sum() - len(means)))


def parc(features: Array, labels: Array, examples: int = 500, seed: int = 0) -> float:
    """Rank correlation of the distances 1 - correlation between features and between one-hot labels, of all pairs of
    at most `examples` drawn at random (Bolya et al. 2021). Between -1 and 1."""
    f, onehot = _checked(features, labels)
    chosen = np.random.default_rng(seed).permutation(len(f))[:examples]
    ours = rankdata(pdist(f[chosen], "correlation"))
    theirs = rankdata(pdist(onehot[chosen], "cityblock"))  # like 1 - correlation two values, but these without rounding
    if ours.std() == 0 or theirs.std() == 0:
        return 0.0
    return float(np.corrcoef(ours, theirs)[0, 1])


def knn(features: Array, labels: Array, neighbours: int = 5, block: int = 1024) -> float:
    """Accuracy of the vote of the nearest other examples by cosine, weighted by similarity (leave one out)."""
    f, onehot = _checked(features, labels)
    unit = f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), np.finfo(float).tiny)
    neighbours, right = min(neighbours, len(f) - 1), 0
    for start in range(0, len(f), block):
        rows = np.arange(start, min(start + block, len(f)))
        similarity = unit[rows] @ unit.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        near = np.argpartition(-similarity, neighbours - 1, axis=1)[:, :neighbours]
        weights = 1 + np.take_along_axis(similarity, near, 1)  # never negative
        votes = (weights[..., None] * onehot[near]).sum(1)
        right += int((votes.argmax(1) == onehot[rows].argmax(1)).sum())
    return right / len(f)


def principal_components(features: Array, dimensions: int | None = None, energy: float = 1.0) -> Array:
    """Centred features in the first principal components: at most `dimensions`, enough for `energy` of the variance."""
    centered = features - features.mean(0)
    u, singular, _ = np.linalg.svd(centered, full_matrices=False)
    share = np.cumsum(singular ** 2) / max((singular ** 2).sum(), np.finfo(float).tiny)
    kept = min(int(np.searchsorted(share, energy - 1e-12)) + 1, dimensions or len(singular), len(singular))
    return (u * singular)[:, :kept]


def _checked(values: Array, labels: Array) -> tuple[Array, Array]:
    """The values in float64, and the labels one-hot [N, C] over the classes that occur."""
    values, labels = np.asarray(values, np.float64), np.asarray(labels)
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise ValueError(f"expected values [N, D] and labels [N], got {list(values.shape)} and {list(labels.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("features or probabilities are not finite")
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("all labels are equal; transferability needs examples of two classes or more")
    return values, np.eye(len(classes))[indices]


FEATURE_SCORES: dict[str, Callable[..., float]] = {
    "nleep": nleep, "logme": logme, "h_score": h_score, "regularized_h_score": regularized_h_score,
    "transrate": transrate, "gbc": gbc, "parc": parc, "knn": knn,
}
PREDICTION_SCORES: dict[str, Callable[..., float]] = {"leep": leep, "nce": nce}
