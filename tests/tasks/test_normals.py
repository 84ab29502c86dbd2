"""Surface normals: the loss and its gradient, angles by numpy in float64, unknown pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.evaluation import METRICS
from transfer_jax.tasks import TaskSpec, head_outputs, predict
from transfer_jax.tasks.metric import accumulate
from transfer_jax.tasks.normals import angles, cosine_distance, error_of_image

TASK = build(TaskSpec, {"kind": "normals", "head": "up"})


def drawn(seed=0, count=7, size=(5, 6)):
    generator = np.random.default_rng(seed)
    normals = generator.normal(size=(count, *size, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    answers = (3 * normals + generator.normal(size=normals.shape)).astype(np.float32)
    normals[generator.uniform(size=normals.shape[:3]) < 0.3] = 0
    normals[2] = 0
    weights = generator.uniform(0.5, 2, count).astype(np.float32)
    weights[4] = 0
    return answers, normals.astype(np.float32), weights


def degrees(answers, normals):
    """Of the known pixels, in float64."""
    known = normals.any(-1)
    a, n = answers[known].astype(np.float64), normals[known].astype(np.float64)
    return np.rad2deg(np.arctan2(np.linalg.norm(np.cross(a, n), axis=-1), (a * n).sum(-1)))


def test_the_loss_is_one_minus_the_cosine_whatever_the_length_of_answers():
    answers, normals, weights = drawn()
    known = normals.any(-1) * weights[:, None, None]
    a = answers.astype(np.float64) / np.linalg.norm(answers, axis=-1, keepdims=True)
    expected = (known * (1 - (a * normals).sum(-1))).sum() / known.sum()
    np.testing.assert_allclose(cosine_distance(answers, normals, weights), expected, rtol=1e-5)
    np.testing.assert_allclose(cosine_distance(answers * 100, normals, weights), expected, rtol=1e-5)
    assert abs(float(cosine_distance(normals, normals, weights))) < 1e-6
    np.testing.assert_allclose(cosine_distance(-normals, normals, weights), 2, rtol=1e-6)
    assert float(cosine_distance(answers, np.zeros_like(normals), weights)) == 0


def test_gradients_turn_and_do_not_lengthen():
    answers, normals, weights = drawn()
    answers[0, 0, 0] = 0  # an answer without a direction
    gradient = np.asarray(jax.grad(cosine_distance)(answers, normals, weights))
    assert np.isfinite(gradient).all() and not gradient[~normals.any(-1)].any() and not gradient[4].any()
    np.testing.assert_allclose((gradient * answers).sum(-1), 0, atol=1e-6)
    assert np.abs(gradient).max() > 1e-3


def test_small_angles_are_exact():
    turn = np.deg2rad([0.01, 1.0, 90.0, 179.99])
    other = np.stack([np.cos(turn), np.sin(turn), 0 * turn], -1)
    np.testing.assert_allclose(angles(jnp.float32(other), jnp.float32([1, 0, 0])), [0.01, 1, 90, 179.99], rtol=1e-4)


def test_shares_mean_and_median_over_ragged_batches():
    answers, normals, _ = drawn(1, 10)
    metric, total = METRICS["normal_angles"], None
    for start in range(0, 10, 4):
        part = np.minimum(np.arange(start, start + 4), 9)
        batch = {"label": normals[part], "weight": np.float32(np.arange(start, start + 4) < 10)}
        total = accumulate(total, metric.update(metric.init(3), answers[part], batch))
    found, expected = metric.compute(total), degrees(answers, normals)
    np.testing.assert_allclose(found["mean_angle_error"], expected.mean(), rtol=1e-5)
    assert abs(found["median_angle_error"] - np.median(expected)) < 0.06 + np.diff(np.sort(expected)).max() / 9
    for name, limit in (("within_11_25", 11.25), ("within_22_5", 22.5), ("within_30", 30)):
        np.testing.assert_allclose(found[name], (expected < limit).mean(), rtol=1e-9)
    assert all(np.isnan(value) for value in metric.compute(accumulate(None, metric.init(3))).values())


def test_the_median_is_in_its_bin():
    """An odd number of angles, far apart: the median is one of them."""
    metric, turn = METRICS["normal_angles"], np.deg2rad([3.012, 40.033, 77.7])
    answers = np.stack([np.cos(turn), np.sin(turn), 0 * turn], -1)[None, None]
    batch = {"label": np.broadcast_to(np.float32([1, 0, 0]), answers.shape)}
    found = metric.compute(accumulate(None, metric.update(metric.init(3), jnp.float32(answers), batch)))
    assert abs(found["median_angle_error"] - 40.033) < 0.05


def test_answers_have_length_one_and_wrong_shapes_are_told():
    answers, normals, weights = drawn()
    found = np.asarray(predict(TASK, answers)["prediction"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)
    expected = [degrees(answers[i], normals[i]).mean() if normals[i].any() else 0 for i in range(7)]
    np.testing.assert_allclose(error_of_image(answers, normals), expected, rtol=1e-4)
    assert head_outputs(TASK) == 3
    with pytest.raises(UserError, match="outputs and normals"):
        cosine_distance(answers[..., :2], normals, weights)
