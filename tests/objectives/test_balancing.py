"""Combining losses and gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.objectives import COMBINATION_PARAMETERS, COMBINATIONS, GRADIENT_RULES, TERMS, balancing
from transfer_jax.objectives.balancing import fixed, initial_log_variances, uncertainty
from transfer_jax.objectives.statistics import STATISTICS
from transfer_jax.objectives.wiring import PER_STREAM, SHARED

LOSSES = {"digits": jnp.float32(1.5), "depth": jnp.float32(0.2)}
KINDS = {"digits": "classification", "depth": "regression"}


def pcgrad(gradients, key):
    return jax.jit(balancing.pcgrad)(gradients, key)[0]


def project_conflicts(gradients, orders):
    return jax.jit(balancing.project_conflicts)(gradients, orders)[0]


def test_fixed_weights():
    total, _ = fixed(LOSSES, weights={"depth": 10.0})
    np.testing.assert_allclose(total, 3.5, rtol=1e-6)
    np.testing.assert_allclose(fixed(LOSSES)[0], 1.7, rtol=1e-6)
    with pytest.raises(UserError, match="did you mean 'digits'"):
        fixed(LOSSES, weights={"digit": 1.0})


def test_uncertainty_equals_its_formula():
    s = {"digits": jnp.float32(0.3), "depth": jnp.float32(-1.2)}
    total, metrics = uncertainty(LOSSES, s, KINDS)
    expected = 1.5 * np.exp(-0.3) + 0.15 + 0.2 * np.exp(1.2) / 2 - 0.6
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["weight_depth"], np.exp(1.2) / 2, rtol=1e-6)


def test_uncertainty_regression_is_the_gaussian_likelihood():
    """Up to its constant: -log N(y; f, sigma^2) = (y - f)^2 / (2 sigma^2) + log sigma + log(2 pi) / 2."""
    residual, sigma = 0.7, 1.9
    total, _ = uncertainty({"depth": jnp.float32(residual**2)}, {"depth": jnp.float32(2 * np.log(sigma))}, KINDS)
    density = np.exp(-residual**2 / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(total, -np.log(density) - np.log(2 * np.pi) / 2, rtol=1e-5)


def test_uncertainty_learns_the_optimal_variances():
    s = initial_log_variances(LOSSES, initial=-0.5)
    assert all(value == -0.5 and value.dtype == jnp.float32 for value in s.values())
    gradient = jax.jit(jax.grad(lambda s: uncertainty(LOSSES, s, KINDS)[0]))
    for _ in range(200):
        s = jax.tree.map(lambda value, slope: value - 0.5 * slope, s, gradient(s))
    np.testing.assert_allclose(s["digits"], np.log(2 * 1.5), rtol=1e-4)
    np.testing.assert_allclose(s["depth"], np.log(0.2), rtol=1e-4)


def test_uncertainty_needs_matching_names_and_kinds():
    with pytest.raises(UserError, match="name them alike"):
        uncertainty(LOSSES, initial_log_variances(["digits"]), KINDS)
    with pytest.raises(UserError, match="'classification' or 'regression'"):
        uncertainty(LOSSES, initial_log_variances(LOSSES), {**KINDS, "depth": "ranking"})


def brute_force(gradients, orders):
    result = np.zeros(gradients.shape[1])
    for task, order in enumerate(orders):
        vector = gradients[task].astype(np.float64)
        for other in order:
            inner = vector @ gradients[other].astype(np.float64)
            if other != task and inner < 0:
                vector = vector - inner / np.sum(gradients[other].astype(np.float64)**2) * gradients[other]
        result += vector
    return result


@pytest.mark.parametrize("tasks, size", [(2, 3), (3, 2), (5, 4), (4, 200)])
def test_pcgrad_equals_brute_force(tasks, size):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        gradients = rng.normal(size=(tasks, size)).astype(np.float32)
        orders = np.stack([rng.permutation(tasks) for _ in range(tasks)])
        np.testing.assert_allclose(project_conflicts(gradients, orders), brute_force(gradients, orders), atol=2e-5)


def test_pcgrad_of_two_tasks_frees_each_from_the_conflict():
    gradients = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    np.testing.assert_allclose(pcgrad(gradients, jax.random.key(0)), [0.5, 1.5], atol=1e-6)
    np.testing.assert_allclose(gradients @ pcgrad(gradients, jax.random.key(0)) > 0, True)


def test_pcgrad_without_conflict_is_the_sum_and_a_zero_gradient_does_no_harm():
    rng = np.random.default_rng(0)
    gradients = np.abs(rng.normal(size=(4, 6))).astype(np.float32)
    for key in jax.random.split(jax.random.key(1), 3):
        np.testing.assert_allclose(pcgrad(gradients, key), gradients.sum(0), rtol=1e-5)
    gradients = jnp.array([[1.0, 2.0], [0.0, 0.0], [-1.0, 0.5]])
    np.testing.assert_allclose(pcgrad(gradients, jax.random.key(0)), GRADIENT_RULES["sum"](gradients)[0], atol=1e-6)


def test_pcgrad_is_a_pure_function_of_its_key_and_the_order_matters():
    gradients = jnp.asarray(np.random.default_rng(3).normal(size=(5, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 20)
    results = jax.jit(jax.vmap(pcgrad, (None, 0)))(gradients, keys)
    np.testing.assert_allclose(results[0], pcgrad(gradients, keys[0]), atol=1e-5)
    assert len(np.unique(np.round(results, 3), axis=0)) > 1
    assert not np.allclose(results[0], GRADIENT_RULES["sum"](gradients)[0])


def test_registered_terms_name_known_quantities_and_have_defaults_for_users():
    needed = {(name, "count") for name in ("irm_penalty", "risk_variance", "group_dro", "multi_source_adversarial")}
    for name, term in TERMS.items():
        for parameter in inspect.signature(term).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert parameter.default is not parameter.empty or (name, parameter.name) in needed, parameter.name
            else:
                known = parameter.name in (*SHARED, *STATISTICS) or any(
                    parameter.name == quantity or parameter.name.endswith(f"_{quantity}") for quantity in PER_STREAM)
                assert known, (name, parameter.name)
    assert set(COMBINATION_PARAMETERS) <= set(COMBINATIONS)
