"""Dense against `nn.Dense`, and what it is for: gradients without transposed copies on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transfer_jax.layers.dense import Dense, product


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2), (jnp.float64, 1e-13)])
@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 5, 4), (0, 5, 4)])
def test_equals_flax_in_value_and_gradients_per_member(shape, dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        x = jax.random.normal(jax.random.key(0), (2, *shape)).astype(dtype)
        params = {"kernel": jax.random.normal(jax.random.key(1), (2, 4, 3)),
                  "bias": jax.random.normal(jax.random.key(2), (2, 3))}

        def run(layer):
            def loss(params, x):
                y = jax.checkpoint(lambda x: layer.apply({"params": params}, x))(x)
                return jnp.sin(y.astype(jnp.float32 if dtype == jnp.bfloat16 else dtype)).sum(), y
            return jax.vmap(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

        ours, flax = (run(kind(3, dtype=dtype)) for kind in (Dense, nn.Dense))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=10 * tolerance, atol=10 * tolerance), ours, flax)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(lambda a: (a.shape, a.dtype), flax)


def test_the_gradient_is_not_stored_transposed():
    def gradients(x, kernel, g):
        return jax.vjp(product, x, kernel)[1](jnp.tanh(g))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(2, 8, 8, 4), (4, 16), (2, 8, 8, 16)]]
    text = jax.jit(gradients).lower(*shapes).compile().as_text()
    assert "transpose(%" not in text and " copy(" not in text
    naive = jax.jit(lambda x, k, g: jax.vjp(jnp.matmul, x, k)[1](jnp.tanh(g))).lower(*shapes).compile().as_text()
    assert "transpose(%" in naive  # else the compiler has learned it, and `product` is needed no more
