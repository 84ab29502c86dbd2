"""Keypoints: mean places of heat maps, the loss by loops, shares of points within a distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.evaluation import METRICS
from transfer_jax.tasks import TaskSpec, head_outputs, predict
from transfer_jax.tasks.keypoints import error_of_image, integral_regression
from transfer_jax.tasks.metric import accumulate

TASK = build(TaskSpec, {"kind": "keypoints", "head": "points"})
SIZE = (10, 16)


def drawn(seed=0, count=6, points=4):
    generator = np.random.default_rng(seed)
    outputs = generator.normal(0, 2, (count, *SIZE, points)).astype(np.float32)
    labels = np.concatenate([generator.uniform(0.1, 0.9, (count, points, 2)),
                             generator.integers(0, 3, (count, points, 1))], -1).astype(np.float32)
    labels[labels[..., 2] == 0] = 0
    labels[3] = 0
    weights = generator.uniform(0.5, 2, count).astype(np.float32)
    weights[4] = 0
    return outputs, labels, weights


def heat_of(outputs):
    """Softmax over pixels in float64, [B, K, H, W]."""
    logits = np.moveaxis(outputs.astype(np.float64), -1, 1)
    heat = np.exp(logits - logits.max((2, 3), keepdims=True))
    return heat / heat.sum((2, 3), keepdims=True)


def places_of(outputs):
    heat = heat_of(outputs)
    y, x = ((np.arange(side) + 0.5) / side for side in SIZE)
    return np.stack([(heat * x).sum((2, 3)), (heat * y[:, None]).sum((2, 3))], -1)


def test_an_answer_is_the_mean_place_of_its_heat_map():
    outputs, _, _ = drawn()
    found = np.asarray(predict(TASK, outputs)["prediction"])
    np.testing.assert_allclose(found[..., :2], places_of(outputs), rtol=1e-5)
    peak = np.full((1, *SIZE, 1), -100, np.float32)
    peak[0, 7, 12, 0] = 100
    np.testing.assert_allclose(predict(TASK, peak)["prediction"][0, 0], [12.5 / 16, 7.5 / 10, 1], rtol=1e-6)
    flat = predict(TASK, np.zeros((1, *SIZE, 1), np.float32))["prediction"][0, 0]
    assert flat[2] < 0.1
    np.testing.assert_allclose(flat[:2], 0.5, rtol=1e-6)


@pytest.mark.parametrize("heat,sigma", [(0.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_the_loss_is_its_definition(heat, sigma):
    outputs, labels, weights = drawn()
    maps, places = heat_of(outputs), places_of(outputs)
    total = np.zeros(2)
    mass = 0.0
    for b, k in np.ndindex(labels.shape[:2]):
        if labels[b, k, 2] == 0:
            continue
        rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
        square = (columns + 0.5 - labels[b, k, 0] * SIZE[1]) ** 2 + (rows + 0.5 - labels[b, k, 1] * SIZE[0]) ** 2
        target = np.exp(-square / (2 * sigma**2))
        target /= target.sum()
        divergence = (target * (np.log(np.maximum(target, 1e-30)) - np.log(maps[b, k]))).sum()
        total += weights[b] * np.array([np.abs(places[b, k] - labels[b, k, :2]).sum(), divergence])
        mass += weights[b]
    value, parts = integral_regression(outputs, labels, weights, heat=heat, sigma=sigma)
    np.testing.assert_allclose([parts["place"], parts["heat"]], total / mass, rtol=1e-4)
    np.testing.assert_allclose(value, (total[0] + heat * total[1]) / mass, rtol=1e-4)


def test_points_that_nobody_knows_have_no_gradient():
    outputs, labels, weights = drawn()
    gradient = np.asarray(jax.grad(lambda z: integral_regression(z, labels, weights)[0])(outputs))
    counted = (labels[..., 2] > 0) & (weights > 0)[:, None]
    assert ((gradient != 0).any((1, 2)) == counted).all() and np.isfinite(gradient).all()
    assert float(integral_regression(outputs, np.zeros_like(labels), weights)[0]) == 0


def test_descending_the_loss_finds_the_points():
    labels = np.random.default_rng(0).uniform(0.2, 0.8, (6, 3, 3)).astype(np.float32)
    labels[..., 2] = 2
    outputs = jnp.zeros((len(labels), *SIZE, 3))
    step = jax.jit(lambda z: z - 300 * jax.grad(lambda z: integral_regression(z, labels, jnp.ones(len(labels)))[0])(z))
    first = float(error_of_image(outputs, labels).mean())
    for _ in range(100):
        outputs = step(outputs)
    assert first > 1 and float(error_of_image(outputs, labels).max()) < 0.3


def test_shares_and_the_mean_distance_over_ragged_batches():
    outputs, labels, _ = drawn(1, 10)
    outputs *= 8  # places all over the image
    metric, total = METRICS["pck"], None
    for start in range(0, 10, 4):
        part = np.minimum(np.arange(start, start + 4), 9)
        batch = {"label": labels[part], "weight": np.float32(np.arange(start, start + 4) < 10)}
        total = accumulate(total, metric.update(metric.init(4), outputs[part], batch))
    found, known = metric.compute(total), labels[..., 2] > 0
    distances = np.linalg.norm((places_of(outputs) - labels[..., :2]) * [16, 10], axis=-1)
    np.testing.assert_allclose(found["point_error"], distances[known].mean(), rtol=1e-5)
    for name, alpha in (("pck_05", 0.05), ("pck_10", 0.1), ("pck_20", 0.2)):
        np.testing.assert_allclose(found[name], (distances[known] <= alpha * 16).mean(), rtol=1e-9)
    assert 0 < found["pck_10"] < found["pck_20"] < 1
    expected = [distances[i][known[i]].mean() if known[i].any() else 0 for i in range(10)]
    np.testing.assert_allclose(error_of_image(outputs, labels), expected, rtol=1e-4)
    assert np.isnan(metric.compute(accumulate(None, metric.init(4)))["pck_10"])


def test_what_does_not_fit_is_told():
    outputs, labels, weights = drawn()
    with pytest.raises(UserError, match="outputs \\[B, H, W, points\\]"):
        integral_regression(outputs[..., 0], labels, weights)
    with pytest.raises(UserError, match="sigma = 0"):
        integral_regression(outputs, labels, weights, sigma=0)
    assert head_outputs(TASK, ("nose", "tail")) == 2
    with pytest.raises(UserError, match="targets=\\('keypoints',\\)"):
        head_outputs(TASK)
