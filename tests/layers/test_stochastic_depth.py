"""Stochastic depth: whole examples, the right mean, nothing in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.layers.stochastic_depth import DropPath


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_examples_are_dropped_whole_and_the_others_scaled(dtype):
    x = jnp.ones((4000, 3, 2), dtype)
    y = DropPath(0.2).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    assert y.dtype == dtype
    kept = y[:, 0, 0] != 0
    np.testing.assert_array_equal(y, jnp.where(kept[:, None, None], x / jnp.asarray(0.8, dtype), 0))
    assert abs(float(kept.mean()) - 0.8) < 0.03


def test_identity_in_evaluation_and_at_rate_zero():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    np.testing.assert_array_equal(DropPath(0.5).apply({}, x, False), x)
    np.testing.assert_array_equal(DropPath(0.0).apply({}, x, True), x)


def test_rate_one_drops_everything():
    np.testing.assert_array_equal(DropPath(1.0).apply({}, jnp.ones((4, 3)), True), np.zeros((4, 3)))
