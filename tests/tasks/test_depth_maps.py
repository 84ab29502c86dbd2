"""Depth: the loss by its definition and its invariance, errors by numpy, pixels that nobody knows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.evaluation import METRICS
from transfer_jax.tasks import TaskSpec, head_outputs, predict
from transfer_jax.tasks.depth import absolute_depth, error_of_image, scale_invariant_log
from transfer_jax.tasks.metric import accumulate

TASK = build(TaskSpec, {"kind": "depth", "head": "far"})


def drawn(seed=0, count=7, size=(5, 6)):
    """Answers (logarithms), depths of which a third is unknown and all of image 2, weights of which that of 4 is 0."""
    generator = np.random.default_rng(seed)
    depth = generator.uniform(0.5, 9, (count, *size)).astype(np.float32)
    answers = (np.log(depth) + generator.normal(0, 0.3, depth.shape))[..., None].astype(np.float32)
    depth[generator.uniform(size=depth.shape) < 0.3] = 0
    depth[2] = 0
    weights = generator.uniform(0.5, 2, count).astype(np.float32)
    weights[4] = 0
    return answers, depth, weights


@pytest.mark.parametrize("invariance", [0.0, 0.5, 1.0])
def test_the_loss_is_its_sum_over_pairs_of_pixels(invariance):
    """Equation 1 of Eigen et al. is a mean over pairs, (d_i - d_j)^2 / 2, for lambda = 1."""
    answers, depth, weights = drawn()
    losses = []
    for z, y in zip(answers[..., 0].astype(np.float64), depth.astype(np.float64), strict=True):
        d = z[y > 0] - np.log(y[y > 0])
        pairs = ((d[:, None] - d[None]) ** 2).mean() / 2 if len(d) else 0.0
        losses.append(invariance * pairs + (1 - invariance) * ((d**2).mean() if len(d) else 0.0))
    counted = weights * (depth > 0).any((1, 2))
    found = scale_invariant_log(answers, depth, weights, invariance=invariance)
    np.testing.assert_allclose(found, (counted * losses).sum() / counted.sum(), rtol=1e-5)


def test_a_factor_on_all_depths_costs_nothing_where_lambda_is_one():
    answers, depth, weights = drawn()
    costs = [[float(scale_invariant_log(answers + shift, depth, weights, invariance=share)) for shift in (0, 2.0)]
             for share in (1.0, 0.5)]
    np.testing.assert_allclose(costs[0][0], costs[0][1], rtol=1e-4)
    assert costs[1][1] > costs[1][0] + 1
    truth = jnp.log(jnp.maximum(depth, 1))[..., None] + jnp.log(2.0)
    far = np.where(depth >= 1, depth, 0)
    np.testing.assert_allclose(scale_invariant_log(truth, far, weights, invariance=0.25), 0.75 * np.log(2) ** 2,
                               rtol=1e-5)


def test_unknown_pixels_and_examples_of_weight_zero_have_no_gradient():
    answers, depth, weights = drawn()
    for loss in (scale_invariant_log, absolute_depth):
        gradient = np.asarray(jax.grad(loss)(answers, depth, weights))[..., 0]
        assert np.isfinite(gradient).all() and not gradient[depth == 0].any() and not gradient[4].any()
        assert (gradient[weights > 0][depth[weights > 0] > 0] != 0).all()
        assert float(loss(answers, np.zeros_like(depth), weights)) == 0


def test_absolute_depth_is_in_units_of_depth():
    answers, depth, weights = drawn()
    known = (depth > 0) * weights[:, None, None]
    expected = (known * np.abs(np.exp(answers[..., 0].astype(np.float64)) - depth)).sum() / known.sum()
    np.testing.assert_allclose(absolute_depth(answers, depth, weights), expected, rtol=1e-5)


def test_errors_are_those_of_the_known_pixels_over_ragged_batches():
    answers, depth, _ = drawn(1, 10)
    metric, total = METRICS["depth_errors"], None
    for start in range(0, 10, 4):
        part = np.minimum(np.arange(start, start + 4), 9)
        batch = {"label": depth[part], "weight": np.float32(np.arange(start, start + 4) < 10)}
        total = accumulate(total, metric.update(metric.init(1), answers[part], batch))
    found, known = metric.compute(total), depth > 0
    y, p = depth[known].astype(np.float64), np.exp(answers[..., 0][known].astype(np.float64))
    np.testing.assert_allclose(found["abs_rel_error"], (np.abs(p - y) / y).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["depth_rmse"], np.sqrt(((p - y) ** 2).mean()), rtol=1e-5)
    np.testing.assert_allclose(found["log_depth_rmse"], np.sqrt(((np.log(p) - np.log(y)) ** 2).mean()), rtol=1e-5)
    for k in (1, 2, 3):
        np.testing.assert_allclose(found[f"delta{k}"], (np.maximum(p / y, y / p) < 1.25**k).mean(), rtol=1e-9)
    assert np.isnan(metric.compute(accumulate(None, metric.init(1)))["delta1"])


def test_answers_are_positive_and_wrong_shapes_are_told():
    answers, depth, weights = drawn()
    found = predict(TASK, answers * 1e4)["prediction"]
    assert found.shape == depth.shape and (found > 0).all() and np.isfinite(found).all()
    expected = [np.abs(answers[i, ..., 0] - np.log(np.maximum(depth[i], 1e-9)))[depth[i] > 0].mean()
                if depth[i].any() else 0.0 for i in range(len(depth))]
    np.testing.assert_allclose(error_of_image(answers, depth), expected, rtol=1e-5)
    assert head_outputs(TASK) == 1
    with pytest.raises(UserError, match="outputs \\[B, H, W, 1\\]"):
        scale_invariant_log(np.zeros((7, 5, 6, 2)), depth, weights)
    with pytest.raises(UserError, match="invariance = 2"):
        scale_invariant_log(answers, depth, weights, invariance=2)
