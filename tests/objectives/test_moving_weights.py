"""Weights that move from step to step, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.moving_weights import (
    auto_lambda,
    auto_lambda_start,
    dynamic_average,
    dynamic_average_start,
    famo,
    famo_after,
    famo_start,
    grad_norm,
    grad_norm_start,
    length_slopes,
)


def named(values):
    return {str(i): jnp.float32(value) for i, value in enumerate(values)}


def test_dynamic_average_weights_by_the_fall_of_window_means():
    losses = np.random.default_rng(0).uniform(0.5, 2.0, (9, 3)).astype(np.float32)
    carried, found = dynamic_average_start(3), []
    step = jax.jit(lambda values, carried: dynamic_average(named(values), carried, window=2, temperature=0.7))
    for values in losses:
        total, metrics, carried = step(values, carried)
        found.append(np.asarray(metrics["weights"]))
        np.testing.assert_allclose(total, found[-1] @ values, rtol=1e-5)
    np.testing.assert_allclose(found[:4], 1.0, rtol=1e-6)  # the first two windows
    for number in (4, 6, 8):
        last, before = losses[number - 2:number].mean(0), losses[number - 4:number - 2].mean(0)
        expected = np.exp(last / before / 0.7)
        np.testing.assert_allclose(found[number], 3 * expected / expected.sum(), rtol=1e-4)
    np.testing.assert_array_equal(found[4], found[5])
    for wrong in ({"window": 0}, {"temperature": 0.0}):
        with pytest.raises(UserError, match="do not fit"):
            dynamic_average(named(losses[0]), dynamic_average_start(3), **wrong)


def test_famo_scales_gradients_of_logarithms_and_follows_the_least_gain():
    carried = {**famo_start(3), "logits": jnp.asarray([0.3, -0.2, 0.1])}
    values = np.array([2.0, 0.5, 1.0])
    z = np.exp([0.3, -0.2, 0.1]) / np.exp([0.3, -0.2, 0.1]).sum()
    expected = z / values / (z / values).sum()
    weights = jax.grad(lambda losses: famo(losses, carried)[0])(named(values))
    np.testing.assert_allclose([weights[name] for name in "012"], expected, rtol=1e-5)
    _, metrics, kept = famo(named(values), carried)
    np.testing.assert_allclose(metrics["weights"], expected, rtol=1e-5)
    after = np.array([1.0, 0.5, 0.9])
    moved = famo_after(kept, jnp.asarray(after, jnp.float32), lr=0.1, decay=0.01)
    slopes = (np.diag(z) - np.outer(z, z)) @ (np.log(values) - np.log(after)) + 0.01 * np.array([0.3, -0.2, 0.1])
    np.testing.assert_allclose(moved["optimizer"][0].mu, 0.1 * slopes, rtol=1e-4)  # Adam's first mean
    np.testing.assert_allclose(moved["logits"], kept["logits"] - 0.1 * np.sign(slopes), atol=1e-4)


def test_the_slopes_of_grad_norm_are_those_of_its_loss_and_reach_the_weights_alone():
    rng = np.random.default_rng(1)
    weights, norms, rates = (jnp.asarray(rng.uniform(0.5, 2.0, 4), jnp.float32) for _ in range(3))

    def loss(weights):
        target = jax.lax.stop_gradient(jnp.mean(weights * norms) * (rates / jnp.mean(rates)) ** 1.5)
        return jnp.sum(jnp.abs(weights * norms - target))

    np.testing.assert_allclose(length_slopes(weights, norms, rates, 1.5), jax.grad(loss)(weights), rtol=1e-5)
    gradients = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    carried = {**grad_norm_start(4), "weights": jnp.asarray([1.0, 0.5, 2.0, 0.5])}
    found, metrics, _ = grad_norm(gradients, jnp.ones(4), carried)
    np.testing.assert_allclose(found, carried["weights"] @ gradients, rtol=1e-5)  # whatever the weights will be
    np.testing.assert_array_equal(metrics["weights"], carried["weights"])


def test_grad_norm_brings_gradients_to_equal_lengths_and_its_weights_add_up():
    gradients = jnp.asarray([[4.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    carried = grad_norm_start(3, lr=0.02)
    step = jax.jit(lambda carried: grad_norm(gradients, jnp.ones(3), carried, alpha=0.0, lr=0.02)[2])
    for _ in range(600):
        carried = step(carried)
        assert abs(float(carried["weights"].sum()) - 3) < 1e-5
    lengths = np.asarray(carried["weights"]) * np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=0.1)


def test_the_meta_gradient_of_auto_lambda_equals_finite_differences():
    rng = np.random.default_rng(2)
    matrix = jnp.asarray(rng.normal(size=(3, 5, 5)), jnp.float32)
    target, start = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32), jnp.asarray(rng.normal(size=5), jnp.float32)

    def losses(theta):
        return jnp.mean(jnp.square(jnp.einsum("tij,j->ti", matrix, theta) - target), axis=1)

    gradients = jax.jacobian(losses)(start)
    primary = jnp.asarray([0.0, 1.0, 0.0])

    def after(weights):
        return primary @ losses(start - 0.05 * weights @ gradients)

    carried = auto_lambda_start(3, initial=0.4)
    _, _, moved = auto_lambda(gradients, ("a", "b", "c"), lambda direction, wanted: jax.grad(
        lambda theta: wanted @ losses(theta))(start - direction), carried, primary=("b",), reach=0.05)
    slopes = np.asarray(moved["optimizer"][0].mu) / 0.1  # Adam's first mean
    np.testing.assert_allclose(slopes, jax.grad(after)(carried["weights"]), rtol=1e-4)
    for i in range(3):
        step = np.eye(3, dtype=np.float32)[i] * 1e-2
        difference = (after(carried["weights"] + step) - after(carried["weights"] - step)) / 2e-2
        np.testing.assert_allclose(slopes[i], difference, rtol=0.02, atol=1e-3)
    assert isinstance(moved["optimizer"][0], optax.ScaleByAdamState)
    with pytest.raises(UserError, match="did you mean 'b'"):
        auto_lambda(gradients, ("a", "b", "c"), None, carried, primary=("bb",))
