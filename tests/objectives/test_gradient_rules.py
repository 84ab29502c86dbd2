"""Rules that make one gradient of many: against exact solvers, and by the properties that they claim."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from transfer_jax.core.errors import UserError
from transfer_jax.objectives import COMBINATION_CARRIED, GRADIENT_RULES
from transfer_jax.objectives.balancing import project_conflicts
from transfer_jax.objectives.combining import Combination
from transfer_jax.objectives.fair_weights import fairgrad
from transfer_jax.objectives.gradient_directions import alignment
from transfer_jax.objectives.gradient_surgery import grad_drop, vaccinate

SOLVED = ["mgda", "cagrad", "upgrad", "dual_proj", "nash_mtl", "fairgrad", "imtl_g", "config"]
EQUIVARIANT = [*SOLVED, "aligned_mtl"]
KEY = jax.random.key(0)


def called(name, gradients, **options):
    """The rule as the engine calls it: (gradient, metrics, what it carries on)."""
    return JITTED[name](gradients, tuple(sorted(options.items())))


def _called(name, gradients, options):
    count = len(gradients)
    rule = functools.partial(GRADIENT_RULES[name], **dict(options))
    reads = tuple(p for p, found in inspect.signature(GRADIENT_RULES[name]).parameters.items()
                  if found.kind is not found.KEYWORD_ONLY)
    carried = COMBINATION_CARRIED[name](count) if name in COMBINATION_CARRIED else None
    if name == "gradvac":  # at its start of 0 it is PCGrad
        carried = {"targets": jnp.full((count, count), 0.3)}
    if name == "grad_norm":  # at its start of 1 it is the sum
        carried |= {"weights": jnp.arange(1.0, count + 1) / count}
    combination = Combination(name, tuple(map(str, range(count))), {}, rule, reads)
    return combination(gradients=gradients, losses=jnp.arange(1.0, count + 1), present=jnp.ones(count, bool), key=KEY,
                       carried=carried, lookahead=lambda direction, weights: direction)


JITTED = {name: jax.jit(functools.partial(_called, name), static_argnums=1) for name in GRADIENT_RULES}


def drawn(seed, tasks=4, size=12):
    return np.random.default_rng(seed).normal(size=(tasks, size))


def ruled(name, gradients):
    """The gradient and the residual in double precision."""
    with jax.enable_x64(True):
        gradient, metrics, _ = called(name, jnp.asarray(gradients, jnp.float64))
    return np.asarray(gradient), float(metrics.get("combination_residual", 0.0))


def on_dual_cone(gradients, vector):
    """The closest d to `vector` with G d >= 0, by trying every set of active conditions."""
    best, distance = None, np.inf
    for number in range(2**len(gradients)):
        active = gradients[[i for i in range(len(gradients)) if number >> i & 1]]
        d = vector - np.linalg.pinv(active) @ (active @ vector) if len(active) else vector
        if (gradients @ d).min() > -1e-9 and np.linalg.norm(d - vector) < distance:
            best, distance = d, np.linalg.norm(d - vector)
    return best


def shortest_in_hull(gradients):
    """Every face's point of least norm, by its linear system."""
    best = None
    for number in range(1, 2**len(gradients)):
        face = [i for i in range(len(gradients)) if number >> i & 1]
        k = gradients[face] @ gradients[face].T
        weights = np.linalg.lstsq(k, np.ones(len(face)), rcond=1e-12)[0]
        weights = weights / weights.sum()
        d = weights @ gradients[face]
        if weights.min() > -1e-9 and (best is None or d @ d < best @ best):
            best = d
    return best


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_projections_and_hull_equal_the_enumeration_of_active_sets(tasks):
    for seed in range(4):
        g = drawn(seed, tasks, 8)
        for name, expected in (("mgda", shortest_in_hull(g)), ("dual_proj", on_dual_cone(g, g.mean(0))),
                               ("upgrad", np.mean([on_dual_cone(g, one) for one in g], axis=0))):
            found, residual = ruled(name, g)
            np.testing.assert_allclose(found, expected, atol=1e-8, err_msg=name)
            assert residual < 1e-8


def test_cagrad_equals_slsqp_of_its_primal():
    for seed in range(4):
        g = drawn(seed, 3, 6)
        mean = g.mean(0)
        radius = 0.5 * np.linalg.norm(mean)
        in_ball = functools.partial(lambda x, mean, radius: radius**2 - (x[:-1] - mean) @ (x[:-1] - mean), mean=mean,
                                    radius=radius)
        best = minimize(lambda x: -x[-1], np.append(mean, (g @ mean).min()), method="SLSQP",
                        constraints=[{"type": "ineq", "fun": lambda x, g=g: g @ x[:-1] - x[-1]},
                                     {"type": "ineq", "fun": in_ball}],
                        options={"ftol": 1e-14, "maxiter": 500})
        found, residual = ruled("cagrad", g)
        assert residual < 1e-8
        np.testing.assert_allclose((g @ found).min(), -best.fun, atol=1e-6)
        assert np.linalg.norm(found - mean) <= radius * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fair_gains_are_the_fixed_point(alpha):
    g = drawn(1) * np.array([[1e-2], [1.0], [30.0], [1.0]])
    with jax.enable_x64(True):
        found, metrics = jax.jit(functools.partial(fairgrad, alpha=alpha))(jnp.asarray(g))
    found = np.asarray(found)
    # d = sum_i a_i g_i with a_i = (g_i . d)^-alpha: the weights follow from d, and give d again.
    np.testing.assert_allclose(g.T @ (g @ found) ** -alpha, found, rtol=1e-8, atol=1e-8 * np.linalg.norm(found))
    assert metrics["combination_residual"] < 1e-8


@pytest.mark.parametrize("tasks, size", [(1, 5), (2, 20), (10, 30), (50, 100)])
def test_residuals_are_small_and_claims_hold_at_many_sizes(tasks, size):
    g = drawn(2, tasks, size)
    for name in SOLVED:
        found, residual = ruled(name, g)
        assert residual < 1e-8, name
        if name not in ("cagrad", "imtl_g"):
            assert (g @ found).min() > -1e-8, name
    with_single = called("mgda", jnp.asarray(g, jnp.float32))
    assert with_single[0].dtype == jnp.float32 and with_single[1]["combination_residual"] < 1e-4


def test_dependent_gradients_have_projections():
    g = drawn(3, 10, 3)
    for name in ("mgda", "cagrad", "upgrad", "dual_proj"):
        found, residual = ruled(name, g)
        assert residual < 1e-8 and np.isfinite(found).all(), name
        if name != "cagrad":
            assert (g @ found).min() > -1e-8, name


def test_mgda_of_lengths_over_six_decades():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for size, single in ((12, True), (3, False)):  # with 3 numbers each, the 6 gradients depend on each other
            g = rng.normal(size=(6, size)) * 10.0 ** rng.uniform(-3, 3, (6, 1))
            found, residual = ruled("mgda", g)
            assert residual < 1e-8
            norms = np.linalg.norm(g, axis=1)
            assert ((found @ found - g @ found) / norms / norms.min()).max() < 1e-8
            if single:
                np.testing.assert_allclose(called("mgda", jnp.asarray(g, jnp.float32))[0], found,
                                           atol=2e-3 * np.linalg.norm(found))


@pytest.mark.parametrize("name", GRADIENT_RULES)
def test_a_task_of_gradient_zero_is_no_nan_and_weights_make_the_gradient(name):
    g = drawn(13)
    g[1] = 0
    found, metrics, _ = called(name, jnp.asarray(g, jnp.float32))
    assert np.isfinite(found).all()
    if name != "grad_drop":
        np.testing.assert_allclose(metrics_weights(metrics) @ g, found, atol=1e-4)
    if name == "mgda":
        assert not found.any()
    assert np.isfinite(called(name, jnp.zeros((4, 12)))[0]).all()


def metrics_weights(metrics):
    return np.asarray([metrics[f"weight_{i}"] for i in range(sum(name.startswith("weight_") for name in metrics))])


@pytest.mark.parametrize("name", ["mgda", "cagrad", "upgrad", "dual_proj"])
def test_an_absent_task_counts_as_if_it_were_not_there(name):
    g = drawn(14)
    with jax.enable_x64(True):
        rule, g = jax.jit(GRADIENT_RULES[name]), jnp.asarray(g)
        without = rule(g[np.array([0, 2, 3])], jnp.ones(3, bool))[0]
        absent = rule(g.at[1].set(0.0), jnp.asarray([True, False, True, True]))[0]
    np.testing.assert_allclose(absent, without, atol=1e-7)


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_order_of_tasks_and_a_common_scale(name):
    g = drawn(4)
    found = ruled(name, g)[0]
    np.testing.assert_allclose(ruled(name, g[[2, 0, 3, 1]])[0], found, atol=1e-7)
    # K a = a^(-1 / alpha): a scale s of the gradients leaves s^((1 - alpha) / (1 + alpha)) of the result.
    factor = {"nash_mtl": 1.0, "fairgrad": 100 ** (1 - 2 * 2 / 3)}.get(name, 100.0)
    np.testing.assert_allclose(ruled(name, 100 * g)[0], factor * found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_equal_gradients_and_gradients_of_zero(name):
    one = drawn(5, 1)
    found = ruled(name, np.repeat(one, 3, axis=0))[0]
    np.testing.assert_allclose(found @ one[0], np.linalg.norm(found) * np.linalg.norm(one), rtol=1e-8)
    np.testing.assert_allclose(ruled(name, 0 * drawn(5))[0], 0, atol=1e-12)
    assert np.isfinite(ruled(name, np.concatenate([one, 0 * one, drawn(6, 1)]))[0]).all()


def test_rules_differ():
    results = {name: ruled(name, drawn(7))[0] for name in GRADIENT_RULES}
    names = list(results)
    for i, first in enumerate(names):
        for second in names[:i]:
            assert np.abs(results[first] - results[second]).max() > 1e-3, (first, second)


def test_opposed_gradients_have_no_bargain_and_that_is_said():
    g = np.concatenate([drawn(8, 1), -drawn(8, 1)])
    for name in ("nash_mtl", "fairgrad", "imtl_g", "config"):
        for dtype in (np.float32, np.float64):
            with jax.enable_x64(dtype == np.float64):
                found, metrics, _ = called(name, jnp.asarray(g, dtype))
            assert np.isnan(found).all() and np.isinf(metrics["combination_residual"]), name


def test_equal_projections_cosines_and_aligned_components():
    g = drawn(9) * np.array([[1.0], [10.0], [0.1], [3.0]])
    units = g / np.linalg.norm(g, axis=1, keepdims=True)
    for name in ("imtl_g", "config"):
        projections = units @ ruled(name, g)[0]
        np.testing.assert_allclose(projections, projections[0], rtol=1e-8)
    found = ruled("config", g)[0]
    np.testing.assert_allclose(np.linalg.norm(found), (g @ found).sum() / np.linalg.norm(found), rtol=1e-8)
    a = np.linalg.lstsq(g.T, ruled("imtl_g", g)[0], rcond=None)[0]
    np.testing.assert_allclose(a.sum(), 1, rtol=1e-8)
    with jax.enable_x64(True):
        mixed = np.asarray(alignment(jnp.asarray(g @ g.T))) @ g
    np.testing.assert_allclose(np.linalg.cond(mixed), 1, rtol=1e-6)
    np.testing.assert_allclose(ruled("aligned_mtl", g)[0], mixed.sum(0), rtol=1e-6, atol=1e-9)


def test_the_vaccine_turns_to_the_target_and_is_pcgrad_at_zero():
    g = drawn(10).astype(np.float32)
    orders = jnp.asarray([np.random.default_rng(i).permutation(4) for i in range(4)])
    found, weights, targets = jax.jit(vaccinate)(g, orders, jnp.zeros((4, 4)))
    np.testing.assert_allclose(found, project_conflicts(g, orders)[0], atol=1e-5)
    np.testing.assert_allclose(weights @ g, found, atol=1e-5)
    assert np.abs(targets).max() <= 0.01 and np.abs(targets).max() > 0
    pair, order = drawn(11, 2).astype(np.float32), jnp.asarray([[1, 0], [0, 1]])
    total, _, _ = vaccinate(pair, order, jnp.full((2, 2), 0.6))
    own = np.linalg.lstsq(pair.T, total, rcond=None)[0] - 1  # what was added of the other gradient
    for i in range(2):
        turned = pair[i] + own[1 - i] * pair[1 - i]
        cosine = turned @ pair[1 - i] / np.linalg.norm(turned) / np.linalg.norm(pair[1 - i])
        np.testing.assert_allclose(cosine, 0.6, atol=1e-4)


def test_grad_drop_keeps_one_sign_with_its_probability():
    g = jnp.asarray([[3.0, 1.0, 0.0], [-1.0, 2.0, 0.0]])
    found = np.asarray(jax.vmap(lambda k: grad_drop(g, k))(jax.random.split(KEY, 4000)))
    assert set(found[:, 0]) == {3.0, -1.0} and (found[:, 1] == 3).all() and (found[:, 2] == 0).all()
    np.testing.assert_allclose((found[:, 0] == 3).mean(), 0.75, atol=0.03)
    np.testing.assert_allclose(grad_drop(g, KEY, leak=1.0), g.sum(0))


def test_wrong_arguments():
    for rule, named in (("cagrad", {"radius": -1.0}), ("fairgrad", {"alpha": 0.0}), ("grad_drop", {"leak": 2.0}),
                        ("mgda", {"tolerance": 0.0}), ("grad_norm", {"alpha": -1.0}), ("grad_norm", {"lr": 0.0}),
                        ("gradvac", {"momentum": 2.0}), ("auto_lambda", {"reach": 0.0})):
        with pytest.raises(UserError, match="does not fit"):
            called(rule, jnp.ones((2, 3)), **named)


@pytest.mark.parametrize("ours, theirs, options, factor", [
    ("mgda", "MGDA", {"epsilon": 1e-12, "max_iters": 100000}, 1), ("upgrad", "UPGrad", {}, 1),
    ("dual_proj", "DualProj", {}, 1), ("config", "ConFIG", {}, 1), ("imtl_g", "IMTLG", {}, 1),
    ("cagrad", "CAGrad", {"c": 0.5}, 1), ("fairgrad", "FairGrad", {"alpha": 2.0}, 1),
    ("aligned_mtl", "AlignedMTL", {}, 4)])  # they take the mean of four gradients
def test_torchjd_agrees(ours, theirs, options, factor):
    torchjd = pytest.importorskip("torchjd.aggregation", reason="compares with torchjd, which is not installed here")
    import torch
    g = drawn(12)
    try:
        rule = getattr(torchjd, theirs)(**options)
    except ImportError as error:
        pytest.skip(f"compares with torchjd, whose solver is not installed here: {error}")
    np.testing.assert_allclose(ruled(ours, g)[0], factor * rule(torch.from_numpy(g)).numpy(), rtol=1e-3, atol=1e-3)
