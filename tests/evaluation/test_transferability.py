"""Transferability scores against their definitions, closed forms and invariances."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, spearmanr
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from transfer_jax.evaluation import transferability as scores


def drawn(n: int = 60, dimensions: int = 7, classes: int = 3, apart: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    return rng.normal(size=(n, dimensions)) + apart * rng.normal(size=(classes, dimensions))[labels], labels


def predictions(n: int = 50, source: int = 6, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    return rng.dirichlet(np.full(source, 0.3), size=n), labels


@pytest.mark.parametrize("seed", range(5))
def test_leep_is_its_definition(seed):
    theta, labels = predictions(seed=seed)
    total = 0.0
    for theta_i, y_i in zip(theta, labels, strict=True):
        likelihood = 0.0
        for z in range(theta.shape[1]):
            p_yz = sum(theta[j, z] for j in range(len(labels)) if labels[j] == y_i) / len(labels)
            p_z = sum(theta[j, z] for j in range(len(labels))) / len(labels)
            likelihood += p_yz / p_z * theta_i[z]
        total += np.log(likelihood)
    np.testing.assert_allclose(scores.leep(theta, labels), total / len(labels), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_nce_is_minus_the_conditional_entropy(seed):
    theta, labels = predictions(seed=seed)
    hard = theta.argmax(1)
    total = 0.0
    for z in set(hard):
        for y in set(labels):
            p_yz = np.mean((hard == z) & (labels == y))
            if p_yz:
                total += p_yz * np.log(p_yz / np.mean(hard == z))
    np.testing.assert_allclose(scores.nce(theta, labels), total, rtol=1e-12)


def test_source_classes_without_mass_have_no_say():
    theta, labels = predictions()
    wider = np.insert(theta, [0, 3, 6], 0.0, axis=1)
    np.testing.assert_allclose(scores.leep(wider, labels), scores.leep(theta, labels), rtol=1e-12)
    np.testing.assert_allclose(scores.nce(wider, labels), scores.nce(theta, labels), rtol=1e-12)


def test_a_source_that_knows_the_classes_has_leep_and_nce_zero_and_nce_is_below_leep_of_hard_predictions():
    theta, labels = predictions()
    exact = np.eye(3)[labels]
    assert abs(scores.leep(exact, labels)) < 1e-12 and abs(scores.nce(exact, labels)) < 1e-12
    hard = np.eye(theta.shape[1])[theta.argmax(1)]
    np.testing.assert_allclose(scores.leep(hard, labels), scores.nce(theta, labels), rtol=1e-12)


@pytest.mark.parametrize("n,dimensions", [(40, 6), (12, 30), (20, 20)])
def test_logme_is_the_maximum_of_the_evidence_integral(n, dimensions):
    features, labels = drawn(n, dimensions)
    found = []
    for c in range(3):
        y = (labels == c).astype(float)

        def negative(logs, y=y):  # y ~ N(0, I / beta + F F' / alpha), the integral over w in closed form
            alpha, beta = np.exp(logs)
            covariance = np.eye(n) / beta + features @ features.T / alpha
            return -multivariate_normal(np.zeros(n), covariance, allow_singular=False).logpdf(y) / n

        starts = [minimize(negative, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13},
                           bounds=[(-15, 25)] * 2).fun for start in ((0, 0), (3, 3), (8, 2), (-2, 4), (12, 1))]
        found.append(-min(starts))
    np.testing.assert_allclose(scores.logme(features, labels), np.mean(found), rtol=1e-6)


def test_logme_knows_no_rotation_and_no_scale_and_needs_no_square_matrix():
    features, labels = drawn(30, 40)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0]
    np.testing.assert_allclose(scores.logme(7 * features @ rotation, labels), scores.logme(features, labels), rtol=1e-7)
    padded = np.concatenate([features, np.zeros((30, 5))], 1)
    np.testing.assert_allclose(scores.logme(padded, labels), scores.logme(features, labels), rtol=1e-9)


def test_h_score_equals_the_definition_and_is_invariant_to_invertible_maps():
    features, labels = drawn(80, 5)
    centered = features - features.mean(0)
    conditional = np.stack([centered[labels == y].mean(0) for y in labels])
    expected = np.trace(np.linalg.inv(np.cov(features.T, ddof=0)) @ np.cov(conditional.T, ddof=0))
    np.testing.assert_allclose(scores.h_score(features, labels), expected, rtol=1e-10)
    mixed = features @ np.random.default_rng(2).normal(size=(5, 5)) + 3
    np.testing.assert_allclose(scores.h_score(mixed, labels), expected, rtol=1e-8)


def test_the_regularized_h_score_nears_the_plain_one_with_many_examples_only():
    many = drawn(20000, 5)
    np.testing.assert_allclose(scores.regularized_h_score(*many), scores.h_score(*many), rtol=0.02)
    noise, labels = drawn(40, 100, apart=0.0)
    assert scores.h_score(noise, labels) > 1.9  # C - 1 = 2: as if noise told the classes
    assert scores.regularized_h_score(noise, labels) < 0.3


def test_transrate_is_the_difference_of_coding_rates():
    features, labels = drawn(50, 4)
    z = features - features.mean(0)
    z /= np.sqrt((z ** 2).sum(1).mean())

    def rate(rows):
        return 0.5 * np.log(np.linalg.det(np.eye(4) + rows.T @ rows / (len(rows) * 1e-4)))

    expected = rate(z) - sum(np.mean(labels == c) * rate(z[labels == c]) for c in range(3))
    np.testing.assert_allclose(scores.transrate(features, labels), expected, rtol=1e-9)
    wide, labels = drawn(20, 50)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(50, 50)))[0]
    np.testing.assert_allclose(scores.transrate(wide @ rotation, labels), scores.transrate(wide, labels), rtol=1e-9)


@pytest.mark.parametrize("spherical", [True, False])
def test_gbc_is_minus_the_overlap_of_gaussians(spherical):
    features, labels = drawn(90, 2, classes=2, apart=2.0)
    reduced = scores.principal_components(features)
    lines = np.linspace(-12, 12, 481)
    grid = np.stack(np.meshgrid(lines, lines), -1)
    densities = []
    for c in range(2):
        rows = reduced[labels == c]
        variance = rows.var(0).mean() * np.ones(2) if spherical else rows.var(0)
        densities.append(multivariate_normal(rows.mean(0), np.diag(variance)).pdf(grid))
    overlap = np.sqrt(densities[0] * densities[1]).sum() * (lines[1] - lines[0]) ** 2
    np.testing.assert_allclose(scores.gbc(features, labels, spherical=spherical), -2 * overlap, rtol=1e-5)


def test_parc_is_spearman_of_all_pairs():
    features, labels = drawn(30, 6)
    onehot = np.eye(3)[labels]
    pairs = [(i, j) for i in range(30) for j in range(i)]
    ours = [1 - np.corrcoef(features[i], features[j])[0, 1] for i, j in pairs]
    theirs = [round(1 - np.corrcoef(onehot[i], onehot[j])[0, 1], 9) for i, j in pairs]  # ties stay ties
    np.testing.assert_allclose(scores.parc(features, labels), spearmanr(ours, theirs).statistic, rtol=1e-9)


@pytest.mark.parametrize("block", [7, 1024])
def test_knn_leaves_the_example_itself_out(block):
    features, labels = drawn(60, 5, apart=0.7)
    right = 0
    for i in range(60):
        others = np.arange(60) != i
        model = KNeighborsClassifier(5, metric="cosine", algorithm="brute", weights=lambda d: 2 - d)
        right += model.fit(features[others], labels[others]).predict(features[i:i + 1])[0] == labels[i]
    assert scores.knn(features, labels, block=block) == right / 60 < 1


def test_principal_components_keep_distances_and_as_much_variance_as_asked():
    features, _ = drawn(40, 8)
    whole = scores.principal_components(features)
    np.testing.assert_allclose(whole @ whole.T, (features - features.mean(0)) @ (features - features.mean(0)).T,
                               atol=1e-10)
    variances = whole.var(0)
    kept = scores.principal_components(features, energy=0.8).shape[1]
    assert variances[:kept].sum() >= 0.8 * variances.sum() > variances[:kept - 1].sum()
    assert scores.principal_components(features, dimensions=3).shape == (40, 3)


@pytest.mark.parametrize("name", scores.FEATURE_SCORES)
def test_every_score_prefers_features_that_tell_the_digits_apart(name):
    digits = load_digits()
    features, labels = digits.data[:600], digits.target[:600]
    score = scores.FEATURE_SCORES[name]
    noisy = features + np.random.default_rng(0).normal(size=features.shape) * 20
    shuffled = np.random.default_rng(0).permutation(labels)
    assert score(features, labels) > score(noisy, labels)
    assert score(features, labels) > score(features, shuffled)
    assert score(features, labels) == score(features, labels)
    permutation = np.random.default_rng(1).permutation(600)
    if name not in ("parc", "nleep"):  # these draw examples or starting points
        permuted = score(features[permutation], labels[permutation])
        np.testing.assert_allclose(permuted, score(features, labels), rtol=1e-8)


def test_all_scores_together_differ_and_bad_input_is_refused():
    theta, labels = predictions(60, 6)
    features, _ = drawn(60, 7)
    found = scores.transferability(features, labels, theta)
    assert list(found) == [*scores.FEATURE_SCORES, *scores.PREDICTION_SCORES]
    assert len(set(np.round(list(found.values()), 9))) == len(found)
    assert list(scores.transferability(features, labels, names=("logme",))) == ["logme"]
    np.testing.assert_allclose(scores.logme(features, labels * 10 - 3), found["logme"])  # any whole numbers
    with pytest.raises(ValueError, match="no score 'leep'"):
        scores.transferability(features, labels, names=("leep",))
    with pytest.raises(ValueError, match="two classes"):
        scores.logme(features, np.zeros(60, int))
    with pytest.raises(ValueError, match="finite"):
        scores.logme(np.where(features > 2, np.nan, features), labels)
    with pytest.raises(ValueError, match=r"\[60, 7\] and \[59\]"):
        scores.logme(features, labels[:-1])
