"""Pooling against flax (values) and PyTorch (gradients, also where values tie)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transfer_jax.layers.pooling import avg_pool, global_average, max_pool

CASES = {  # size of the window, strides, padding of both sides, image
    "2x2": (2, 2, 0, (8, 6)),
    "2x2, ragged": (2, 2, 0, (9, 7)),
    "3x3 by 2": (3, 2, 1, (9, 8)),
    "3x3 by 1": (3, 1, 1, (5, 6)),
    "2x2 by 3": (2, 3, 0, (9, 10)),
    "3x3 by 3, padded": (3, 3, 1, (8, 7)),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_max_pool_equals_torch_in_value_and_gradient(case, ties, torch):
    size, strides, padding, image = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *image, 3)).astype(np.float32)
    x = np.maximum(np.round(x), 0) if ties else x  # after a ReLU many values tie at zero
    y, pull = jax.vjp(jax.jit(lambda x: max_pool(x, size, strides, padding)), jnp.asarray(x))
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    theirs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_(True)
    out = torch.nn.functional.max_pool2d(theirs, size, strides, padding)
    out.backward(torch.tensor(cotangent).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(y, out.detach().permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], theirs.grad.permute(0, 2, 3, 1).numpy(), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_avg_pool_equals_torch_in_value_and_gradient(case, torch):
    size, strides, padding, image = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *image, 3)).astype(np.float32)
    y, pull = jax.vjp(jax.jit(lambda x: avg_pool(x, size, strides, padding)), jnp.asarray(x))
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    theirs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_(True)
    out = torch.nn.functional.avg_pool2d(theirs, size, strides, padding)
    out.backward(torch.tensor(cotangent).permute(0, 3, 1, 2))
    np.testing.assert_allclose(y, out.detach().permute(0, 2, 3, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], theirs.grad.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_gradient_equals_flax_under_vmap_with_same_padding():
    x = jax.random.normal(jax.random.key(0), (3, 2, 9, 7, 4))
    weight = jax.random.normal(jax.random.key(1), (2, 5, 4, 4))
    ours = jax.jit(jax.vmap(jax.grad(lambda x: (max_pool(x, 3, 2, "SAME") * weight).sum())))(x)
    flax = jax.jit(jax.vmap(jax.grad(lambda x: (nn.max_pool(x, (3, 3), (2, 2), "SAME") * weight).sum())))(x)
    np.testing.assert_allclose(ours, flax, atol=1e-6)


def test_each_gradient_reaches_one_place_when_all_tie():
    gradient = jax.grad(lambda x: max_pool(x, 2).sum())(jnp.zeros((1, 4, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], np.tile([[1.0, 0.0], [0.0, 0.0]], (2, 2)))


def test_nan_stays_visible():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert bool(jnp.isnan(max_pool(x, 2)).all())
    y, pull = jax.vjp(lambda x: max_pool(x, 2), x)
    assert bool(jnp.isnan(y).all()) and float(pull(jnp.ones_like(y))[0][0, 1, 0, 0]) == 1.0


def test_averages():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    np.testing.assert_allclose(avg_pool(x, 2), x.reshape(2, 3, 2, 2, 2, 3).mean((2, 4)), atol=1e-6)
    np.testing.assert_allclose(avg_pool(jnp.ones((1, 4, 4, 1)), 3, 1, "SAME")[0, 0, 0, 0], 4 / 9, rtol=1e-6)
    np.testing.assert_allclose(global_average(x), x.mean((1, 2)), atol=1e-6)
    assert global_average(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_bfloat16_keeps_its_dtype():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3), jnp.bfloat16)
    for pool in (max_pool, avg_pool):
        y, pull = jax.vjp(lambda x, pool=pool: pool(x, 3, 2, 1), x)
        assert y.dtype == jnp.bfloat16 and pull(y)[0].dtype == jnp.bfloat16
