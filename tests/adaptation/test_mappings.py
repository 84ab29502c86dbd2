"""Methods that move features, as mathematics: closed forms, eigenproblems, integrals, marginals."""

import inspect

import jax
import numpy as np
import pytest
import scipy.linalg
from scipy.optimize import linprog
from scipy.spatial.distance import cdist

from transfer_jax.adaptation import MAPPINGS
from transfer_jax.adaptation.components import means, projection
from transfer_jax.adaptation.correlation import coral
from transfer_jax.adaptation.domains import Problem
from transfer_jax.adaptation.subspaces import geodesic_factor, principal_axes
from transfer_jax.adaptation.transport import barycentric, class_plan, costs, exact_plan, sinkhorn_plan
from transfer_jax.core.errors import UserError


def nearest(x, labels, query):
    return labels[cdist(query, x).argmin(1)]


def problem(n_s=30, n_t=24, d=6, classes=3, seed=0, given=0):
    """Classes apart, the target turned, scaled and moved."""
    rng = np.random.default_rng(seed)
    labels, truth = np.arange(n_s) % classes, np.arange(n_t) % classes
    centers = 3 * rng.normal(size=(classes, d))
    turn = scipy.linalg.expm(0.3 * np.triu(rng.normal(size=(d, d)), 1) - 0.3 * np.tril(np.ones((d, d)), -1) / d)
    source = centers[labels] + rng.normal(size=(n_s, d))
    target = (centers[truth] + rng.normal(size=(n_t, d))) @ turn + 1.5
    known = np.where(np.arange(n_t) < given, truth, -1)
    return Problem(source, labels, target, known, nearest), truth


def random_problem(seed):
    rng = np.random.default_rng(100 + seed)
    return problem(*(int(rng.integers(low, high)) for low, high in ((4, 30), (4, 30), (1, 12), (2, 4))), seed=seed)[0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", [name for name in MAPPINGS if not name.startswith("ot")])
def test_random_shapes_give_finite_features_of_one_width(name, seed):
    given = random_problem(seed)
    mapping = MAPPINGS[name](given)
    z_s, z_t = mapping.of_source(given.source), mapping.of_target(given.target)
    assert z_s.shape[0] == len(given.source) and z_t.shape[0] == len(given.target) and z_s.shape[1] == z_t.shape[1]
    assert np.isfinite(z_s).all() and np.isfinite(z_t).all() and z_s.dtype == np.float64
    np.testing.assert_allclose(mapping.of_target(given.target[:2]), z_t[:2], atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["ot", "ot-classes"])
def test_random_shapes_of_transport(name, seed):
    given = random_problem(seed)
    z_s = MAPPINGS[name](given).of_source(given.source)
    assert z_s.shape == given.source.shape and np.isfinite(z_s).all()
    low, high = given.target.min(0) - 1e-9, given.target.max(0) + 1e-9
    assert ((z_s >= low) & (z_s <= high)).all(), "means of target examples"


def test_methods_differ():
    given, _ = problem()
    distances = {}
    for name, function in MAPPINGS.items():
        options = {"dimensions": 2} if "dimensions" in inspect.signature(function).parameters else {}
        mapping = function(given, **options, **({"balance": 0.9} if name == "bda" else {}))  # at one half it is JDA
        distances[name] = cdist(mapping.of_source(given.source), mapping.of_target(given.target)).ravel()
        distances[name] /= distances[name].mean()
    names = list(distances)
    for place, one in enumerate(names):
        for other in names[place + 1:]:
            assert np.abs(distances[one] - distances[other]).max() > 1e-3, (one, other)


@pytest.mark.parametrize("name", [name for name in MAPPINGS if name != "augmentation"])
def test_order_of_examples_does_not_matter(name):
    given, _ = problem(20, 16, 4)
    rng = np.random.default_rng(1)
    a, b = rng.permutation(20), rng.permutation(16)
    turned = Problem(given.source[a], given.labels[a], given.target[b], given.target_labels[b], nearest)
    one, other = MAPPINGS[name](given), MAPPINGS[name](turned)
    first = cdist(one.of_source(given.source), one.of_target(given.target))
    np.testing.assert_allclose(cdist(other.of_source(turned.source), other.of_target(turned.target)), first[a][:, b],
                               atol=1e-5)


def test_principal_axes_are_those_of_a_decomposition():
    for shape in ((30, 6), (5, 12)):
        x = np.random.default_rng(0).normal(size=shape)
        axes, notes = principal_axes(x, 3, "PCA")
        _, _, right = np.linalg.svd(x - x.mean(0))
        np.testing.assert_allclose(np.abs(axes.T @ right[:3].T), np.eye(3), atol=1e-9)
        assert notes == ()
    axes, notes = principal_axes(x, 9, "PCA")
    assert axes.shape == (12, 4) and "4 dimensions instead of 9" in notes[0]
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-9)


def test_subspace_alignment_is_the_closed_form():
    given, _ = problem()
    mapping = MAPPINGS["sa"](given, dimensions=3)
    p_s, p_t = (np.linalg.svd(x - x.mean(0))[2][:3].T for x in (given.source, given.target))
    aligned = (given.source - given.source.mean(0)) @ p_s @ p_s.T @ p_t
    target = (given.target - given.target.mean(0)) @ p_t
    np.testing.assert_allclose(cdist(mapping.of_source(given.source), mapping.of_target(given.target)),
                               cdist(aligned, target), atol=1e-8)
    # M = P_s'P_t is the best of all alignments of the axes.
    best, rng = np.linalg.norm(p_s @ (p_s.T @ p_t) - p_t), np.random.default_rng(0)
    for _ in range(50):
        assert np.linalg.norm(p_s @ (p_s.T @ p_t + 0.1 * rng.normal(size=(3, 3))) - p_t) >= best


@pytest.mark.parametrize(("d", "k"), [(8, 2), (10, 4), (5, 1), (6, 4)])
def test_geodesic_flow_kernel_is_the_integral_along_the_geodesic(d, k):
    rng = np.random.default_rng(d + k)
    p_s, p_t = (np.linalg.qr(rng.normal(size=(d, k)))[0] for _ in range(2))
    with jax.enable_x64(True):
        factor = np.asarray(geodesic_factor(p_s, p_t))
    # The geodesic by the matrix exponential of a turn in the plane of both: no principal angles are used.
    complement = scipy.linalg.null_space(p_s.T)
    u, cosines, v = np.linalg.svd(p_s.T @ p_t)
    a = complement.T @ p_t @ np.linalg.inv(p_s.T @ p_t)  # tangent of the angles
    left, tangents, right = np.linalg.svd(a, full_matrices=False)
    direction = left @ np.diag(np.arctan(tangents)) @ right
    skew = np.block([[np.zeros((k, k)), -direction.T], [direction, np.zeros((d - k, d - k))]])
    whole = np.concatenate([p_s, complement], 1)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    integral = np.zeros((d, d))
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        phi = whole @ scipy.linalg.expm(node * skew)[:, :k]
        np.testing.assert_allclose(phi.T @ phi, np.eye(k), atol=1e-9)
        integral += weight * phi @ phi.T
    end = whole @ scipy.linalg.expm(skew)[:, :k]
    np.testing.assert_allclose(end @ end.T, p_t @ p_t.T, atol=1e-8, err_msg="it ends in the target's subspace")
    np.testing.assert_allclose(factor @ factor.T, integral, atol=1e-8)


def test_geodesic_between_equal_subspaces_is_their_projection():
    p = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 3)))[0]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    factor = np.asarray(geodesic_factor(p, p @ turn))
    np.testing.assert_allclose(factor @ factor.T, p @ p.T, atol=1e-7)


def test_coral_gives_the_source_the_covariance_of_the_target():
    given, _ = problem(60, 50, 5)
    mapping = coral(given, ridge=0.0)
    moved = mapping.of_source(given.source)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(given.target.T), atol=1e-9)
    np.testing.assert_allclose(moved.mean(0), given.target.mean(0), atol=1e-9)
    np.testing.assert_array_equal(mapping.of_target(given.target), given.target)
    # With a ridge it is C + ridge I that is carried over, by the symmetric roots.
    matrix = coral(given, ridge=0.5, center=False).of_source(np.eye(5))
    c_s, c_t = (np.cov(x.T) + 0.5 * np.eye(5) for x in (given.source, given.target))
    np.testing.assert_allclose(matrix.T @ c_s @ matrix, c_t, atol=1e-9)
    np.testing.assert_allclose(matrix, np.linalg.inv(scipy.linalg.sqrtm(c_s)) @ scipy.linalg.sqrtm(c_t), atol=1e-9)


def test_coral_of_singular_covariances():
    given, _ = problem(6, 30, 9)
    moved = coral(given, ridge=0.0).of_source(given.source)
    assert np.isfinite(moved).all()
    values = np.linalg.eigvalsh(np.cov(moved.T))
    assert (values > 1e-8).sum() == 5, "six examples span five directions"


def test_transfer_components_solve_their_eigenproblem():
    given, truth = problem(20, 16, 5)
    both = np.concatenate([given.source, given.target])
    for features, labels in ((both, None), (both @ both.T, truth), (np.exp(-cdist(both, both) ** 2 / 50), truth)):
        e = means(given.labels, 16, labels)
        shares = np.linspace(1, 2, len(e))
        weights, values = projection(features, e, shares, 0.3)
        matrix = (e.T * shares) @ e
        left = features.T @ (np.eye(36) - 1 / 36) @ features
        right = features.T @ matrix @ features / np.linalg.norm(matrix) + 0.3 * np.eye(features.shape[1])
        assert np.abs(left @ weights - right @ weights * values).max() <= 1e-8 * values.max()
        np.testing.assert_allclose(weights.T @ right @ weights, np.eye(weights.shape[1]), atol=1e-8)
        expected = scipy.linalg.eigh(left, right, eigvals_only=True)[::-1]
        np.testing.assert_allclose(values, expected[:len(values)], rtol=1e-7, atol=1e-9 * values.max())


def test_differences_of_means_are_those_of_their_definition():
    given, truth = problem(20, 15, 4)
    e = means(given.labels, 15, truth)
    both = np.concatenate([given.source, given.target])
    np.testing.assert_allclose(e[0] @ both, given.source.mean(0) - given.target.mean(0))
    for label in range(3):
        np.testing.assert_allclose(e[1 + label] @ both, given.source[given.labels == label].mean(0)
                                   - given.target[truth == label].mean(0))
    assert len(means(given.labels, 15, np.zeros(15, int))) == 2, "classes that the target does not have are left out"


def test_linear_kernel_is_that_of_all_examples():
    given, _ = problem(14, 11, 4)
    both = np.concatenate([given.source, given.target])
    kernel = both @ both.T
    weights, _ = projection(kernel, means(given.labels, 11, None), np.ones(1), 1.0)
    mapping = MAPPINGS["tca"](given, kernel="linear", unit=False, dimensions=3)
    z = np.concatenate([mapping.of_source(given.source), mapping.of_target(given.target)])
    np.testing.assert_allclose(cdist(z, z), cdist(kernel @ weights[:, :3], kernel @ weights[:, :3]), atol=1e-6)
    primal = MAPPINGS["tca"](given, kernel="primal", unit=False, dimensions=3)
    assert np.abs(cdist(z, z) - cdist(primal.of_source(both), primal.of_source(both))).max() > 1e-3


def test_jda_without_classes_is_tca_and_bda_has_both_as_its_ends():
    given, _ = problem(given=24)  # all target labels are known: nothing is guessed
    z = {}
    for name, options in (("tca", {}), ("jda", {"iterations": 2}), ("bda", {"iterations": 2, "balance": 0.5}),
                          ("bda0", {"iterations": 2, "balance": 0.0})):
        mapping = MAPPINGS[name[:3]](given, dimensions=3, unit=True, **options)
        x = np.concatenate([mapping.of_source(given.source), mapping.of_target(given.target)])
        z[name] = cdist(x, x)
    np.testing.assert_allclose(z["bda"], z["jda"], atol=1e-7, err_msg="equal weights are JDA: L has norm one anyway")
    np.testing.assert_allclose(z["bda0"], z["tca"], atol=1e-7)
    assert np.abs(z["jda"] - z["tca"]).max() > 1e-3


def test_jda_brings_the_means_of_classes_together():
    rng = np.random.default_rng(2)
    labels, truth = np.arange(60) % 3, np.arange(48) % 3
    centers = 4 * np.eye(3, 6)
    given = Problem(centers[labels] + 0.5 * rng.normal(size=(60, 6)), labels,
                    centers[truth] + 0.5 * rng.normal(size=(48, 6)) + 1.5, np.full(48, -1), nearest)

    def apart(mapping):
        z_s, z_t = mapping.of_source(given.source), mapping.of_target(given.target)
        spread = np.concatenate([z_s, z_t]).std()
        return sum(np.linalg.norm(z_s[labels == c].mean(0) - z_t[truth == c].mean(0)) for c in range(3)) / spread

    options = {"dimensions": 2, "ridge": 0.01, "unit": False, "kernel": "primal"}
    found = MAPPINGS["jda"](given, **options)
    assert apart(found) < 0.5 * apart(MAPPINGS["pca"](given, dimensions=2))
    assert apart(found) < apart(MAPPINGS["tca"](given, **options)) and (found.labels == truth).mean() > 0.9


@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 8), (9, 4), (1, 5), (7, 1)])
def test_plans_have_their_marginals_and_sinkhorn_tends_to_the_exact_one(n, m):
    rng = np.random.default_rng(n * m)
    cost = costs(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)))
    exact = exact_plan(cost)
    found = [sinkhorn_plan(cost, regularisation) for regularisation in (1.0, 0.1, 0.01)]
    for plan in (exact, *found):
        assert plan.min() >= -1e-12
        np.testing.assert_allclose(plan.sum(1), 1 / n, atol=1e-9)
        np.testing.assert_allclose(plan.sum(0), 1 / m, atol=1e-9)
    prices = [(plan * cost).sum() for plan in found]
    best = (exact * cost).sum()
    assert prices[0] >= prices[1] - 1e-9 >= prices[2] - 2e-9 and prices[2] >= best - 1e-9
    assert prices[2] <= best + 0.01 * np.log(n * m) + 1e-6, "the entropy is worth no more"


def test_the_exact_plan_is_the_linear_program():
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(5, 5))
    rows = np.kron(np.eye(5), np.ones(5))
    columns = np.kron(np.ones(5), np.eye(5))
    found = linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=np.full(10, 0.2))
    assert (exact_plan(cost) * cost).sum() == pytest.approx(found.fun)


def test_sinkhorn_satisfies_its_first_order_conditions():
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(6, 7))
    plan = sinkhorn_plan(cost, 0.2, tolerance=1e-12)
    potential = 0.2 * np.log(plan) + cost  # must be f_i + g_j
    np.testing.assert_allclose(potential - potential[:1] - potential[:, :1] + potential[0, 0], 0, atol=1e-8)


def test_transport_undoes_a_translation_and_keeps_classes_apart():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(12, 3))
    given = Problem(source, np.arange(12) % 2, source[rng.permutation(12)] + 0.3, np.full(12, -1), nearest)
    moved = MAPPINGS["ot"](given, regularisation=0.0).of_source(source)
    np.testing.assert_allclose(moved, source + 0.3, atol=1e-9)
    new = source[:1] + 1e-3
    np.testing.assert_allclose(MAPPINGS["ot"](given, regularisation=0.0).of_source(new), new + 0.3, atol=1e-9)
    np.testing.assert_allclose(barycentric(np.full((12, 12), 1 / 144), given.target), np.tile(given.target.mean(0),
                                                                                             (12, 1)))

    def mixed(weight):
        """The mass that target examples get from the class that sends them less."""
        cost = costs(given.source, given.target)
        plan = np.asarray(class_plan(cost / np.median(cost), given.labels, 0.3, weight, 2000, 1e-8)[0])
        np.testing.assert_allclose(plan.sum(0), 1 / 12, atol=1e-9)
        return np.minimum(plan[given.labels == 0].sum(0), plan[given.labels == 1].sum(0)).sum()

    assert mixed(1.0) < 0.5 * mixed(0.0)


def test_feature_augmentation_copies():
    given, _ = problem(d=2)
    mapping = MAPPINGS["augmentation"](given)
    np.testing.assert_array_equal(mapping.of_source(np.array([[1.0, 2.0]])), [[1, 2, 1, 2, 0, 0]])
    np.testing.assert_array_equal(mapping.of_target(np.array([[1.0, 2.0]])), [[1, 2, 0, 0, 1, 2]])
    assert "no target labels" in mapping.notes[0]


@pytest.mark.parametrize(("name", "options", "message"), [
    ("pca", {"dimensions": 0}, "1 or more"), ("coral", {"ridge": -1}, "0 or more"), ("tca", {"ridge": 0}, "above 0"),
    ("tca", {"kernel": "rfb"}, "did you mean 'rbf'"), ("bda", {"balance": 2}, "from 0 to 1"),
    ("jda", {"iterations": 0}, "1 iteration"), ("ot", {"regularisation": -1}, "0 or more"),
    ("ot", {"regularisation": 0, "class_regularisation": 1}, "together with the entropy")])
def test_settings_that_cannot_be(name, options, message):
    with pytest.raises(UserError, match=message):
        MAPPINGS[name](problem()[0], **options)


@pytest.mark.parametrize("name", MAPPINGS)
def test_equal_points_are_an_error_or_stay_finite(name):
    flat = Problem(np.ones((4, 3)), np.arange(4) % 2, np.ones((5, 3)), np.full(5, -1), nearest)
    if name in ("pca", "sa", "gfk", "tca", "jda", "bda"):
        with pytest.raises(UserError, match="are equal"):
            MAPPINGS[name](flat)
    else:
        mapping = MAPPINGS[name](flat)
        assert np.isfinite(mapping.of_source(flat.source)).all() and np.isfinite(mapping.of_target(flat.target)).all()
