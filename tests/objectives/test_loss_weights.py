"""Losses weighted at random, by their geometric mean, their maximum, or learned scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.loss_weights import geometric_mean, impartial_losses, random_weights, smooth_tchebycheff

LOSSES = {"digits": jnp.float32(1.5), "depth": jnp.float32(0.2)}
VALUES = np.array([1.5, 0.2])


def gradient(function):
    found = jax.grad(lambda losses: function(losses)[0])(LOSSES)
    return np.array([found["digits"], found["depth"]])


def reported(function):
    metrics = function(LOSSES)[1]
    return np.array([metrics["weight_digits"], metrics["weight_depth"]])


def test_random_weights_are_a_softmax_drawn_by_the_key():
    total, metrics = random_weights(LOSSES, jax.random.key(3))
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(3), (2,)))
    np.testing.assert_allclose(total, weights @ VALUES, rtol=1e-6)
    np.testing.assert_allclose(metrics["weight_depth"], weights[1], rtol=1e-6)
    assert random_weights(LOSSES, jax.random.key(4))[0] != total


def test_geometric_mean():
    np.testing.assert_allclose(geometric_mean(LOSSES)[0], np.sqrt(0.3), rtol=1e-6)
    np.testing.assert_allclose(gradient(geometric_mean), np.sqrt(0.3) / 2 / VALUES, rtol=1e-5)
    np.testing.assert_allclose(reported(geometric_mean), gradient(geometric_mean), rtol=1e-6)
    tiny = {str(i): jnp.float32(1e-30) for i in range(4)}
    np.testing.assert_allclose(geometric_mean(tiny)[0], 1e-30, rtol=1e-4)
    assert np.isnan(geometric_mean({**LOSSES, "bad": jnp.float32(-1)})[0])


def test_smooth_tchebycheff():
    def rule(losses):
        return smooth_tchebycheff(losses, smoothness=0.5, ideals={"digits": 1.0})

    over = np.exp(np.array([0.5, 0.2]) / 0.5)
    np.testing.assert_allclose(rule(LOSSES)[0], 0.5 * np.log(over.sum()), rtol=1e-6)
    np.testing.assert_allclose(gradient(rule), over / over.sum(), rtol=1e-5)
    np.testing.assert_allclose(reported(rule), gradient(rule), rtol=1e-5)
    np.testing.assert_allclose(smooth_tchebycheff(LOSSES, smoothness=1e-3)[0], 1.5, rtol=1e-6)
    with pytest.raises(UserError, match="did you mean 'digits'"):
        smooth_tchebycheff(LOSSES, ideals={"digit": 1.0})
    with pytest.raises(UserError, match="number > 0"):
        smooth_tchebycheff(LOSSES, smoothness=0.0)


def test_impartial_losses_scale_every_loss_to_one():
    learned = {name: jnp.log(loss) for name, loss in LOSSES.items()}
    total, metrics = impartial_losses(LOSSES, learned)
    np.testing.assert_allclose(total, 2 + np.log(VALUES).sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["weight_depth"] * 0.2, 1, rtol=1e-6)
    slopes = jax.grad(lambda s: impartial_losses(LOSSES, s)[0])(learned)
    np.testing.assert_allclose([slopes["digits"], slopes["depth"]], 0, atol=1e-6)
    with pytest.raises(UserError, match="name them alike"):
        impartial_losses(LOSSES, {"digits": jnp.float32(0)})
