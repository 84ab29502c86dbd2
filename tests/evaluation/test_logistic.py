"""The logistic path reaches the optimum that scikit-learn reaches, for every strength and subset."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from transfer_jax.evaluation.logistic import logistic_path
from transfer_jax.evaluation.probes import standardised

STRENGTHS = np.array([1e-3, 1.0, 1e-2, 1e-1])  # not in order


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64(True):
        yield


def drawn(n, dimensions, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    return rng.normal(size=(n, dimensions)) + 0.7 * rng.normal(size=(classes, dimensions))[labels], labels


def objective(x, y, weights, bias, strength):
    """The mean cross-entropy and the penalty of coefficients in scikit-learn's form, [1, D] for two classes."""
    logits = x @ weights.T + bias
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
    top = np.logaddexp.reduce(logits, axis=1)
    return np.mean(top - logits[np.arange(len(y)), y]) + strength / 2 * (weights ** 2).sum()


@pytest.mark.parametrize(("n", "dimensions", "classes"), [(120, 10, 3), (90, 6, 2), (40, 70, 4)])
def test_optimum_of_scikit_learn(n, dimensions, classes):
    x, y = drawn(n, dimensions, classes)
    masks = np.stack([np.ones(n, bool), np.arange(n) % 3 > 0])
    found = logistic_path(x, y, classes, STRENGTHS, masks, tolerance=1e-9)
    assert found.weights.shape == (2, 4, dimensions, classes) and np.asarray(found.gradient).max() <= 1e-9
    for number, mask in enumerate(masks):
        for place, strength in enumerate(STRENGTHS):
            theirs = LogisticRegression(C=1 / (strength * mask.sum()), solver="newton-cholesky", tol=1e-10).fit(
                x[mask], y[mask])
            weights, bias = np.asarray(found.weights[number, place]).T, np.asarray(found.bias[number, place])
            if classes == 2:
                weights, bias = weights[1:] - weights[:1], bias[1:] - bias[:1]
            np.testing.assert_allclose(weights, theirs.coef_, atol=1e-5)
            np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-5)
            best = objective(x[mask], y[mask], theirs.coef_, theirs.intercept_, strength)
            np.testing.assert_allclose(found.objective[number, place], best, rtol=1e-9)
            np.testing.assert_allclose(objective(x[mask], y[mask], weights, bias, strength), best, rtol=1e-9)


def test_subsets_and_strengths_do_not_touch_each_other():
    x, y = drawn(60, 5, 3)
    masks = np.arange(60) % 4 != np.arange(4)[:, None]
    together = logistic_path(x, y, 3, STRENGTHS, masks, tolerance=1e-10)
    for number in range(4):
        alone = logistic_path(x[masks[number]], y[masks[number]], 3, STRENGTHS[2:3], tolerance=1e-10)
        np.testing.assert_allclose(together.weights[number, 2], alone.weights[0, 0], atol=1e-8)


def test_single_precision_converges_where_the_classes_are_separable():
    x, y = drawn(200, 300, 3)
    found = logistic_path(x.astype(np.float32), y, 3, np.logspace(-6, 0, 7))
    assert found.weights.dtype == np.float32 and np.asarray(found.gradient).max() <= 1e-5


def test_equal_and_constant_columns_do_no_harm():
    x, y = drawn(50, 4, 3)
    x = np.concatenate([x, x[:, :1], np.zeros((50, 1))], 1)
    found = logistic_path(x, y, 3, STRENGTHS, tolerance=1e-9)
    np.testing.assert_allclose(found.weights[0, :, 0], found.weights[0, :, 4], atol=1e-8)
    np.testing.assert_allclose(found.weights[0, :, 5], 0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_problems_that_have_converged_stand_still_while_others_go_on(seed):
    """Few examples and penalties over eight decades, in float32: some need hundreds of steps more than others."""
    rng = np.random.default_rng(seed)
    y = np.arange(24) % 3
    x = np.float32(rng.normal(size=(24, 16)) + 0.7 * rng.normal(size=(3, 16))[y])
    x = standardised(x, 24)
    masks = rng.random((30, 24)) < 0.75
    with jax.enable_x64(False):
        path = logistic_path(x, y, 3, 10.0 ** np.arange(1, -7, -1), masks)
    assert np.isfinite(path.objective).all() and np.isfinite(path.weights).all() and float(path.gradient.max()) < 1e-4
