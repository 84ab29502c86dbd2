"""DeepJDOT: a plan between batches, and the loss that it fixes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import joint_transport
from transfer_jax.objectives.transport import sinkhorn


def draw(rng):
    sources, targets, length, classes = *rng.integers(1, 7, 2), rng.integers(1, 5), rng.integers(2, 5)
    return {"source_features": rng.normal(size=(sources, length)),
            "source_labels": rng.integers(0, classes, sources),
            "target_features": rng.normal(size=(targets, length)),
            "target_task_logits": rng.normal(0, 2, (targets, classes))}


def cost_of(x, feature_weight, label_weight):
    return np.array([[feature_weight * np.sum((s - t)**2) - label_weight * np.log(softmax(z)[y])
                      for t, z in zip(x["target_features"], x["target_task_logits"], strict=True)]
                     for s, y in zip(x["source_features"], x["source_labels"], strict=True)])


def scaled_plan(cost, regularization, iterations=300):
    """Sinkhorn's own iteration, on the kernel instead of its logarithm."""
    kernel = np.exp(-cost / (regularization * cost.mean()))
    columns = np.ones(cost.shape[1])
    for _ in range(iterations):
        rows = 1 / len(cost) / (kernel @ columns)
        columns = 1 / cost.shape[1] / (kernel.T @ rows)
    return rows[:, None] * kernel * columns[None, :]


def test_it_is_the_cost_of_the_plan_and_the_plan_has_no_gradient():
    for seed in range(20):
        weights = ((1.0, 0.5), (1e-3, 1e-4))[seed % 2]

        def definition(x, constants, weights=weights):
            return np.sum(scaled_plan(cost_of(constants, *weights), 0.1) * cost_of(x, *weights))

        agrees(lambda weights=weights, **x: joint_transport(
            x["source_features"], x["source_labels"], x["target_features"], x["target_task_logits"],
            feature_weight=weights[0], label_weight=weights[1], regularization=0.1, iterations=300), definition,
            draw(np.random.default_rng(seed)), seed, slope_rtol=2e-3)


def test_the_plan_couples_uniform_weights_and_comes_close_to_the_cheapest_assignment():
    rng = np.random.default_rng(0)
    for shape in ((5, 5), (4, 7), (1, 3), (3, 1)):
        cost = jnp.asarray(rng.uniform(size=shape), jnp.float32)
        plan = sinkhorn(cost, 0.05, 500)
        np.testing.assert_allclose(plan.sum(0), 1 / shape[1], rtol=1e-4)
        np.testing.assert_allclose(plan.sum(1), 1 / shape[0], rtol=1e-3)
        np.testing.assert_allclose(plan, scaled_plan(np.asarray(cost, np.float64), 0.05, 500), atol=1e-4)
    cost = rng.uniform(size=(5, 5))
    cheapest = min(np.mean([cost[i, j] for i, j in enumerate(order)]) for order in itertools.permutations(range(5)))
    prices = [float(jnp.sum(sinkhorn(jnp.asarray(cost, jnp.float32), r, 3000) * cost)) for r in (1.0, 0.1, 0.02)]
    assert prices[0] > prices[1] > prices[2] and abs(prices[2] - cheapest) < 0.01 * cheapest


def test_costs_far_beyond_the_regularization_do_not_underflow():
    cost = jnp.asarray(1e6 * np.random.default_rng(1).uniform(size=(4, 6)), jnp.float32).at[0].add(1e9)
    plan = sinkhorn(cost, 1e-4, 200)
    assert np.isfinite(plan).all()
    np.testing.assert_allclose(plan.sum(), 1, rtol=1e-4)


def test_descending_draws_target_features_and_predictions_to_their_sources():
    arrays = draw(np.random.default_rng(2))
    fixed = arrays["source_features"], arrays["source_labels"]

    def loss(features, logits):
        return joint_transport(*fixed, features, logits, feature_weight=1.0, label_weight=1.0)[0]

    start = jnp.asarray(arrays["target_features"]), jnp.asarray(arrays["target_task_logits"])
    slopes = jax.grad(loss, (0, 1))(*start)
    assert loss(start[0] - 0.1 * slopes[0], start[1]) < loss(*start)
    assert loss(start[0], start[1] - 0.1 * slopes[1]) < loss(*start)


def test_equal_features_and_single_examples_stay_finite_and_metrics_report_the_error():
    for count in (1, 3):
        arrays = {"source_features": np.ones((count, 2)), "target_features": np.ones((2, 2)),
                  "target_task_logits": 1e4 * np.eye(2)}
        value = finite(lambda source_features, target_features, target_task_logits, count=count: joint_transport(
            source_features, np.zeros(count, int), target_features, target_task_logits, label_weight=0.0), arrays)
        np.testing.assert_allclose(value, 0, atol=1e-6)
        finite(lambda source_features, target_features, target_task_logits, count=count: joint_transport(
            source_features, np.zeros(count, int), target_features, target_task_logits), arrays)
    metrics = joint_transport(np.ones((3, 2)), np.zeros(3, int), np.ones((2, 2)), np.zeros((2, 2)))[1]
    assert metrics["marginal_error"] < 1e-5


def test_misfits_are_told():
    features, labels, logits = np.ones((3, 2)), np.zeros(3, int), np.ones((3, 4))
    with pytest.raises(UserError, match="numbers > 0"):
        joint_transport(features, labels, features, logits, regularization=0.0)
    with pytest.raises(UserError, match="pooled tap"):
        joint_transport(np.ones((3, 2, 2, 2)), labels, features, logits)
    assert np.isnan(joint_transport(features, labels + 9, features, logits)[0])
