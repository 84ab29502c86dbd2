"""Terms that hold on to what the model said at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from transfer_jax.core.errors import UserError
from transfer_jax.objectives import distillation, features_to_start

RNG = np.random.default_rng(3)
NOW, THEN = (RNG.normal(0, 2, (7, 5)).astype(np.float32) for _ in range(2))
WEIGHTS = np.array([1, 2, 0, 1, 0.5, 1, 1], np.float32)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_the_divergence_of_softened_predictions(temperature):
    now, then = (scipy.special.softmax(z.astype(np.float64) / temperature, axis=1) for z in (NOW, THEN))
    expected = np.average(scipy.stats.entropy(then, now, axis=1), weights=WEIGHTS)
    found = distillation(NOW, THEN, WEIGHTS, temperature=temperature, squared=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(distillation(NOW, THEN, WEIGHTS, temperature=temperature), temperature**2 * expected,
                               rtol=1e-5)


def test_its_gradient_is_that_of_the_cross_entropy_of_lwf():
    def lwf(z):
        probabilities = jax.nn.softmax(THEN / 2)
        return -jnp.average(jnp.sum(probabilities * jax.nn.log_softmax(z / 2), -1), weights=WEIGHTS)

    np.testing.assert_allclose(jax.grad(lambda z: distillation(z, THEN, WEIGHTS, squared=False))(jnp.asarray(NOW)),
                               jax.grad(lwf)(jnp.asarray(NOW)), atol=1e-6)


def test_equal_predictions_cost_nothing_and_high_temperatures_compare_logits():
    np.testing.assert_allclose(distillation(THEN + 3, THEN, WEIGHTS), 0, atol=1e-5)
    hot = distillation(NOW, THEN, jnp.ones(7), temperature=300.0)
    centred = [z - z.mean(1, keepdims=True) for z in (NOW, THEN)]  # Hinton et al. 2015, eq. 4
    np.testing.assert_allclose(hot, np.square(centred[0] - centred[1]).sum(1).mean() / (2 * 5), rtol=0.02)


def test_features_are_held_per_channel_whatever_the_size_of_the_map():
    now, then = (RNG.normal(size=(7, 4, 4, 3)).astype(np.float32) for _ in range(2))
    total = sum(WEIGHTS[b] * np.square(now[b, :, :, c] - then[b, :, :, c]).mean() for b in range(7) for c in range(3))
    found = features_to_start(now, then, WEIGHTS, alpha=0.5)
    np.testing.assert_allclose(found, 0.25 * total / WEIGHTS.sum(), rtol=1e-5)
    larger = [np.repeat(x, 2, axis=1) for x in (now, then)]
    np.testing.assert_allclose(features_to_start(*larger, WEIGHTS), features_to_start(now, then, WEIGHTS), rtol=1e-5)
    assert features_to_start(then, then, WEIGHTS) == 0
    with pytest.raises(UserError, match="same tap"):
        features_to_start(now, then[:, :2], WEIGHTS)
