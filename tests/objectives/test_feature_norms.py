"""Lengths and directions of features: AFN and BSP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import batch_spectral_penalization, feature_norm, hard_feature_norm


def test_the_value_is_the_squared_step_and_the_slope_lengthens():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        batch, step = rng.integers(1, 7), (1.0, 0.3)[seed % 2]
        shape = (batch, *rng.integers(1, 4, rng.integers(1, 4)))
        weights = rng.integers(1, 4, batch)

        def definition(x, constants, weights=weights, step=step):
            sizes, fixed = (np.array([np.sqrt(np.sum(row**2)) for row in z["features"]]) for z in (x, constants))
            return np.sum(weights * (sizes - fixed - step)**2) / weights.sum()

        agrees(functools.partial(feature_norm, weights=jnp.asarray(weights), step=step), definition,
               {"features": rng.normal(size=shape)}, seed)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    np.testing.assert_allclose(feature_norm(features, jnp.ones(5)), 1.0, rtol=1e-5)
    slope = jax.grad(feature_norm)(features, jnp.ones(5))
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(slope, -2 * features / lengths / 5, rtol=1e-5)
    assert np.all(np.linalg.norm(features - slope, axis=1) > lengths[:, 0])


def test_the_hard_form_draws_the_mean_length_to_the_radius():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = (rng.integers(1, 7), *rng.integers(1, 4, rng.integers(1, 4)))
        weights, radius = rng.integers(1, 4, shape[0]), (25.0, 0.5)[seed % 2]

        def definition(x, _, weights=weights, radius=radius):
            total = sum(w * np.sqrt(np.sum(row**2)) for w, row in zip(weights, x["features"], strict=True))
            return (total / weights.sum() - radius)**2

        agrees(functools.partial(hard_feature_norm, weights=jnp.asarray(weights), radius=radius), definition,
               {"features": rng.normal(size=shape)}, seed)
    features = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert finite(functools.partial(hard_feature_norm, weights=jnp.ones(2), radius=2.5), {"features": features}) == 0


def test_a_feature_of_length_zero_gets_no_gradient():
    features = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert finite(functools.partial(feature_norm, weights=jnp.ones(2)), {"features": features}) == 1.0
    slope = jax.grad(feature_norm)(jnp.asarray(features), jnp.ones(2))
    np.testing.assert_allclose(slope, [[0, 0], [-0.6, -0.8]], rtol=1e-6)


def test_spectral_penalization_is_the_sum_of_the_largest_squared_singular_values():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        length, count = rng.integers(2, 7), 1 + seed % 2
        arrays = {name: rng.normal(size=(rng.integers(2, 8), length))
                  for name in ("source_features", "target_features")}

        def definition(x, _, count=count):
            return 0.3 * sum(np.sort(np.linalg.eigvalsh(f.T @ f))[-count:].sum() for f in x.values())

        agrees(functools.partial(batch_spectral_penalization, strength=0.3, count=count), definition, arrays, seed)


@pytest.mark.parametrize("features", [np.zeros((3, 4)), np.ones((5, 2)), np.eye(4)], ids=["zero", "equal", "ties"])
def test_equal_and_absent_singular_values_have_slopes(features):
    value = finite(functools.partial(batch_spectral_penalization, strength=1.0),
                   {"source_features": features, "target_features": features})
    np.testing.assert_allclose(value, 2 * np.linalg.svd(features)[1][0]**2, rtol=1e-5, atol=1e-6)


def test_spectral_penalization_says_what_it_needs():
    for shape, count in (((2, 3, 3, 4), 1), ((4, 3), 4), ((4, 3), 0)):
        with pytest.raises(UserError, match="needs vectors"):
            batch_spectral_penalization(jnp.ones(shape), jnp.ones((4, 3)), count=count)
