"""Gradient reversal and scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.layers.gradient import reverse_gradient, scale_gradient

X = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3)


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_reversal_is_identity_forward_and_negative_backward(scale):
    def loss(x, s):
        return jnp.square(reverse_gradient(x, s)).sum()

    value, (to_x, to_scale) = jax.jit(jax.value_and_grad(loss, (0, 1)))(X, scale)
    np.testing.assert_allclose(value, jnp.square(X).sum(), rtol=1e-6)
    np.testing.assert_allclose(to_x, -scale * 2 * X, rtol=1e-6)
    assert float(to_scale) == 0.0


def test_scaling_may_differ_by_member():
    scales = jnp.array([0.5, -1.0])
    gradients = jax.vmap(jax.grad(lambda x, s: scale_gradient(x, s).sum()))(X, scales)
    np.testing.assert_allclose(gradients, jnp.broadcast_to(scales[:, None], X.shape))


def test_keeps_bfloat16():
    gradient = jax.grad(lambda x: reverse_gradient(x, 0.5).sum().astype(jnp.float32))(X.astype(jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
