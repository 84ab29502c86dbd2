"""Pooling over windows that hang over the edge and over adaptive regions, against PyTorch and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.layers.pooling import adaptive_avg_pool, ceil_max_pool


@pytest.mark.parametrize(("size", "strides", "padding", "image"), [
    (3, 2, 0, (8, 7)), (3, 2, 0, (2, 9)), (2, 2, 0, (7, 1)), (3, 2, 1, (6, 5)), (3, 1, 1, (4, 5)), (2, 3, 1, (7, 8))])
def test_ceil_max_pool_equals_torch_in_value_and_gradient(size, strides, padding, image, torch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *image, 3)).astype(np.float32)
    y, pull = jax.vjp(jax.jit(lambda x: ceil_max_pool(x, size, strides, padding)), jnp.asarray(x))
    theirs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_(True)
    out = torch.nn.functional.max_pool2d(theirs, size, strides, padding, ceil_mode=True)
    np.testing.assert_array_equal(y, out.detach().permute(0, 2, 3, 1).numpy())
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    out.backward(torch.tensor(cotangent).permute(0, 3, 1, 2))
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], theirs.grad.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_the_last_window_of_ceil_max_pool_sees_the_edge_alone():
    row = jnp.arange(6.0).reshape(1, 1, 6, 1)
    np.testing.assert_array_equal(ceil_max_pool(row.repeat(3, 1), 3, 2)[0, 0, :, 0], [2, 4, 5])


@pytest.mark.parametrize(("image", "size"), [((13, 13), 6), ((2, 3), 6), ((7, 7), 7), ((5, 9), (3, 4)), ((14, 7), 7)])
def test_adaptive_means_equal_torch(image, size, torch):
    x = np.random.default_rng(0).normal(size=(2, *image, 3)).astype(np.float32)
    y = jax.jit(lambda x: adaptive_avg_pool(x, size))(x)
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x).permute(0, 3, 1, 2), size)
    np.testing.assert_allclose(y, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_adaptive_means_by_hand():
    row = jnp.arange(5.0).reshape(1, 1, 5, 1)
    np.testing.assert_allclose(adaptive_avg_pool(row, (1, 3))[0, 0, :, 0], [0.5, 2.0, 3.5], rtol=1e-6)
    whole = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    np.testing.assert_allclose(adaptive_avg_pool(whole, 1)[:, 0, 0], whole.mean((1, 2)), atol=1e-6)
    assert adaptive_avg_pool(row.astype(jnp.bfloat16), (1, 3)).dtype == jnp.bfloat16
