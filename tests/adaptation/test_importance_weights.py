"""Importance weights as mathematics: optimality conditions, brute force, known ratios, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, minimize
from scipy.spatial.distance import cdist
from scipy.stats import norm

from transfer_jax.adaptation import WEIGHTS
from transfer_jax.adaptation.kernels import FACTORS, gaussian, median_distance, squared_distances
from transfer_jax.adaptation.kliep import fit_proportions, kliep
from transfer_jax.adaptation.kmm import cheapest, kmm, minimise, program, project
from transfer_jax.adaptation.rulsif import coefficients, leave_one_out, rulsif, ulsif
from transfer_jax.core.errors import UserError

KEY = jax.random.key(0)


def drawn(n_s, n_t, d, seed=0, shift=0.7, spread=0.7):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_s, d)), rng.normal(shift, spread, (n_t, d))


def true_ratio(x, shift=0.7, spread=0.7):
    ratio = np.exp((norm.logpdf(x, shift, spread) - norm.logpdf(x)).sum(1))
    return ratio / ratio.mean()


@pytest.fixture(scope="module")
def gaussians():
    source, target = drawn(200, 150, 1)
    return source, target, {name: function(source, target, KEY) for name, function in WEIGHTS.items()}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_follow_the_ratio_of_two_gaussians(gaussians, name):
    source, _, found = gaussians
    weights, metrics = found[name]
    assert weights.shape == (200,) and weights.dtype == np.float64
    assert weights.min() >= 0 and weights.mean() == pytest.approx(1, abs=1e-12)
    # The linear classifier cannot know that the ratio falls again on the far side.
    least = 0.3 if name == "domain-classifier" else 0.6
    assert np.corrcoef(weights, true_ratio(source))[0, 1] > least, "the right way up"
    assert metrics["largest"] == weights.max()
    assert metrics["effective_share"] == pytest.approx(weights.sum() ** 2 / (weights ** 2).sum() / 200)


def test_methods_differ(gaussians):
    found = [weights for weights, _ in gaussians[2].values()]
    for place, one in enumerate(found):
        for other in found[place + 1:]:
            assert np.abs(one - other).max() > 0.05


@pytest.mark.parametrize("seed", range(20))
def test_project_and_cheapest_of_random_shapes(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 30))
    bound, slack = rng.uniform(1, 5), rng.uniform(0, 0.5)
    low, high = n * (1 - slack), n * (1 + slack)
    point, gradient = rng.normal(1, 2, n), rng.normal(size=n)
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(project)(jnp.asarray(point), bound, low, high))
        corner = np.asarray(jax.jit(cheapest)(jnp.asarray(gradient), bound, low, high))
    limits = [LinearConstraint(np.ones((1, n)), low, high)]
    exact = minimize(lambda b: ((b - point) ** 2).sum(), np.ones(n), jac=lambda b: 2 * (b - point), method="SLSQP",
                     bounds=Bounds(0, bound), constraints=limits, options={"ftol": 1e-14, "maxiter": 500}).x
    np.testing.assert_allclose(found, exact, atol=1e-5)
    for b in (found, corner):
        assert b.min() >= 0 and b.max() <= bound and low - 1e-6 <= b.sum() <= high + 1e-6
    others = _feasible(rng, n, bound, low, high)
    assert (others @ gradient >= corner @ gradient - 1e-9).all()


def _feasible(rng, n, bound, low, high):
    """[50, n], points that satisfy the constraints."""
    with jax.enable_x64(True):
        nearest = jax.jit(jax.vmap(lambda point: project(point, bound, low, high)))
        return np.asarray(nearest(jnp.asarray(rng.normal(1, 3, (50, n)))))


@pytest.mark.parametrize(("n_s", "n_t", "d", "bound", "slack", "ridge"), [
    (25, 30, 1, 3.0, 0.1, 0.0), (40, 15, 3, 10.0, 0.0, 1e-3), (30, 30, 2, 1000.0, 0.8, 1e-3),
    (20, 50, 5, 1.5, 0.2, 1e-2)])
def test_kmm_reaches_the_optimum_of_a_general_solver(n_s, n_t, d, bound, slack, ridge):
    source, target = drawn(n_s, n_t, d)
    with jax.enable_x64(True):
        matrix, linear = program(source, target, 1.0, ridge)
        low, high = n_s * (1 - slack), n_s * (1 + slack)
        found, gap = minimise(matrix, linear, bound, low, high, 1e-12, 50000)
    matrix, linear, b = (np.asarray(part) for part in (matrix, linear, found))
    kernel = np.exp(-cdist(source, source, "sqeuclidean") / 2)
    np.testing.assert_allclose(matrix * n_s ** 2, kernel + n_s * ridge * np.eye(n_s), atol=1e-12)
    np.testing.assert_allclose(linear * n_s ** 2,
                               n_s / n_t * np.exp(-cdist(source, target, "sqeuclidean") / 2).sum(1), atol=1e-12)
    assert b.min() >= -1e-6 and b.max() <= bound + 1e-6 and low - 1e-6 <= b.sum() <= high + 1e-6

    def value(b):
        return b @ matrix @ b / 2 - linear @ b

    scale = n_s ** 2  # SLSQP's tolerance is absolute
    exact = minimize(lambda b: scale * value(b), np.ones(n_s), jac=lambda b: scale * (matrix @ b - linear),
                     method="SLSQP", bounds=Bounds(0, bound),
                     constraints=[LinearConstraint(np.ones((1, n_s)), low, high)],
                     options={"ftol": 1e-13, "maxiter": 2000})
    assert value(b) <= exact.fun / scale + 1e-7 and value(b) >= exact.fun / scale - float(gap) - 1e-7


def test_kmm_shrinks_the_distance_of_means_and_the_bound_matters():
    source, target = drawn(150, 150, 2)
    weights, metrics = kmm(source, target, ridge=0.0, bandwidth=1.0)
    matrix, linear = (np.asarray(part) for part in program(source, target, 1.0))
    ones = np.ones(150)
    assert metrics["objective"] < ones @ matrix @ ones / 2 - linear @ ones - 0.01
    loose, _ = kmm(source, target, ridge=0.0, bandwidth=1.0, bound=1000.0, slack=0.9)
    assert loose.max() > 1.1 * weights.max() and weights.max() <= 10 / 0.9 + 1e-6


@pytest.mark.parametrize(("n_s", "n_t", "d", "bandwidth"), [(80, 60, 1, 0.5), (50, 90, 2, 0.8), (200, 150, 4, 1.5)])
def test_kliep_satisfies_its_optimality_conditions(n_s, n_t, d, bandwidth):
    source, target = drawn(n_s, n_t, d)
    weights, metrics = kliep(source, target, bandwidth=bandwidth, tolerance=1e-6)
    centers = target[:100]
    at_source, at_target = (np.exp(-cdist(x, centers, "sqeuclidean") / (2 * bandwidth ** 2)) for x in (source, target))
    with jax.enable_x64(True):
        near = (squared_distances(jnp.asarray(x), jnp.asarray(centers)) for x in (target, source))
        proportions, *_ = fit_proportions(*near, jnp.asarray(bandwidth), 1e-6, 20000)
        proportions = np.asarray(proportions)
    a = proportions / at_source.mean(0)
    np.testing.assert_allclose(at_source @ a, weights, rtol=1e-6, atol=1e-9)
    assert a.min() >= 0 and (at_source @ a).mean() == pytest.approx(1, abs=1e-9)
    # The slope of the objective by a_l is at most the multiplier of the constraint, 1, times that of the constraint,
    # and equal to it where a_l is above 0: all of the mass lies there.
    gains = (at_target / (at_target @ a)[:, None]).mean(0) / at_source.mean(0)
    assert gains.max() <= 1 + 1e-4 and metrics["gap"] <= 1e-4
    assert (proportions * np.abs(gains - 1)).sum() <= 1e-3
    assert np.log(at_target @ a).mean() == pytest.approx(metrics["objective"], abs=1e-9)


def test_kliep_beats_random_ratios_of_its_family():
    source, target = drawn(60, 50, 2)
    rng = np.random.default_rng(1)
    weights, metrics = kliep(source, target, bandwidth=1.0)
    at_source, at_target = (np.exp(-cdist(x, target, "sqeuclidean") / 2) for x in (source, target))
    for _ in range(200):
        a = rng.dirichlet(np.full(50, 0.1)) / at_source.mean(0)
        assert np.log(at_target @ (a / (at_source @ a).mean())).mean() <= metrics["objective"] + 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_leave_one_out_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    n_s, n_t, centers = int(rng.integers(3, 25)), int(rng.integers(3, 25)), int(rng.integers(1, 12))
    alpha, penalty = (0.0, 0.1, 0.5)[seed % 3], 10.0 ** rng.uniform(-3, 1)
    at_source, at_target = rng.uniform(0, 1, (n_s, centers)), rng.uniform(0, 1, (n_t, centers))
    scores = []
    for i in range(min(n_s, n_t)):
        s, t = np.delete(at_source, i, 0), np.delete(at_target, i, 0)
        matrix = alpha * t.T @ t / (n_t - 1) + (1 - alpha) * s.T @ s / (n_s - 1) + penalty * np.eye(centers)
        theta = np.maximum(np.linalg.solve(matrix, t.mean(0)), 0)
        w_s, w_t = at_source[i] @ theta, at_target[i] @ theta
        scores.append(alpha * w_t ** 2 / 2 + (1 - alpha) * w_s ** 2 / 2 - w_t)
    with jax.enable_x64(True):
        found = float(leave_one_out(jnp.asarray(at_source), jnp.asarray(at_target), alpha, penalty))
    assert found == pytest.approx(np.mean(scores), rel=1e-9, abs=1e-12)


def test_ulsif_by_hand_and_as_rulsif_with_alpha_zero():
    source, target = drawn(70, 40, 3)
    weights, metrics = ulsif(source, target, bandwidth=1.0, penalty=0.1)
    at_source, at_target = (np.exp(-cdist(x, target, "sqeuclidean") / 2) for x in (source, target))
    theta = np.linalg.solve(at_source.T @ at_source / 70 + 0.1 * np.eye(40), at_target.mean(0))
    ratio = at_source @ np.maximum(theta, 0)
    np.testing.assert_allclose(weights, ratio / ratio.mean(), rtol=1e-9)
    for options in ({}, {"bandwidth": 1.0, "penalty": 0.1}):
        one, other = ulsif(source, target, KEY, **options), rulsif(source, target, KEY, alpha=0.0, **options)
        np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(rulsif(source, target, bandwidth=1.0, penalty=0.1, alpha=0.3)[0] - weights).max() > 0.01


def test_the_chosen_setting_is_the_best_of_the_grid():
    source, target = drawn(40, 30, 2)
    _, metrics = rulsif(source, target)
    scale = median_distance(source, target)
    with jax.enable_x64(True):
        for factor in FACTORS[::3]:
            kernels = [gaussian(squared_distances(jnp.asarray(x), jnp.asarray(target)), scale * factor)
                       for x in (source, target)]
            for penalty in (1e-3, 0.1, 10.0):
                assert float(leave_one_out(*kernels, 0.1, penalty)) >= metrics["score"] - 1e-12
            assert (np.asarray(coefficients(*kernels, 0.1, 0.1)) >= 0).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_order_and_place_do_not_matter(name):
    source, target = drawn(60, 40, 2)
    rng = np.random.default_rng(3)
    order, other = rng.permutation(60), rng.permutation(40)
    fixed = {"kliep": {"bandwidth": 1.0}, "kmm": {"bandwidth": 1.0}, "ulsif": {"bandwidth": 1.0, "penalty": 0.1},
             "rulsif": {"bandwidth": 1.0, "penalty": 0.1}}.get(name)
    if fixed is None:
        pytest.skip("folds are drawn by place")
    weights, _ = WEIGHTS[name](source, target, **fixed)
    tolerance = 2e-2 if name == "kliep" else 1e-4 if name == "kmm" else 1e-8
    np.testing.assert_allclose(WEIGHTS[name](source[order], target[other], **fixed)[0], weights[order], atol=tolerance)
    np.testing.assert_allclose(WEIGHTS[name](source + 5.0, target + 5.0, **fixed)[0], weights, atol=tolerance)


@pytest.mark.parametrize("name", WEIGHTS)
def test_equal_points_and_bad_input(name):
    function = WEIGHTS[name]
    weights, metrics = function(np.ones((6, 2)), np.ones((4, 2)), KEY)
    np.testing.assert_array_equal(weights, 1)
    x, y = drawn(8, 6, 2)
    bad = x.copy()
    bad[3, 1] = np.nan
    for arguments, message in [((bad, y), "row 3"), ((x, y[:, :1]), "2 features and the target 1"),
                               ((x[:0], y), "source domain is empty"), ((x, y[:0]), "target domain is empty"),
                               ((x[:, 0], y), "one row an example")]:
        with pytest.raises(UserError, match=message):
            function(*arguments, KEY)
    # One domain constant, columns that are copies: finite all the same.
    assert np.isfinite(function(x, np.ones((5, 2)), KEY)[0]).all()
    assert np.isfinite(function(np.concatenate([x, x], 1), np.concatenate([y, y], 1), KEY)[0]).all()


def test_domain_classifier_finds_a_ratio_of_its_family():
    source, target = drawn(400, 300, 2, spread=1.0)
    weights, metrics = WEIGHTS["domain-classifier"](source, target, KEY)
    assert np.corrcoef(np.log(weights), np.log(true_ratio(source, spread=1.0)))[0, 1] > 0.95
    assert 0.6 < metrics["accuracy"] < 0.8  # the best possible is Phi(0.7 sqrt(2) / 2) = 0.69


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("n_s", "n_t"), [(1, 1), (1, 5), (5, 1), (2, 2), (2, 7), (3, 4)])
def test_very_few_examples(name, n_s, n_t):
    source, target = drawn(n_s, n_t, 2)
    if name == "domain-classifier" and min(n_s, n_t) < 2:
        with pytest.raises(UserError, match="two examples"):
            WEIGHTS[name](source, target, KEY)
    else:
        weights, _ = WEIGHTS[name](source, target, KEY)
        assert np.isfinite(weights).all() and weights.mean() == pytest.approx(1)


def test_settings_that_cannot_be():
    x, y = drawn(8, 6, 2)
    for call, message in [(lambda: kmm(x, y, bound=0.5), "bound of 1"), (lambda: kliep(x, y, bandwidth=0), "above 0"),
                          (lambda: rulsif(x, y, alpha=1.0), "alpha"), (lambda: ulsif(x, y, penalty=-1), "above 0"),
                          (lambda: WEIGHTS["domain-classifier"](x[:1], y), "two examples"),
                          (lambda: ulsif(x, y + 1e6, bandwidth=1.0, penalty=0.1), "larger bandwidth")]:
        with pytest.raises(UserError, match=message):
            call()


def test_domains_that_are_alike_get_nearly_equal_weights():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    for name in ("rulsif", "domain-classifier"):
        assert WEIGHTS[name](source, target, KEY)[1]["effective_share"] > 0.9, name
