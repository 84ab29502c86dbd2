"""Convolution in time: equal to XLA's own, in every derivative, under vmap, in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from transfer_jax.layers.time_convolution import LAYOUT, TimeConv, convolve_time

# Length of the signal, taps, strides, channels, features.
SHAPES = [(33, 8, 4, 1, 6), (32, 9, 4, 2, 3), (7, 64, 1, 3, 2), (16, 5, 1, 4, 4), (10, 3, 7, 1, 1), (1, 4, 2, 1, 2)]


def reference(x, kernel, strides):
    return lax.conv_general_dilated(x, kernel, (strides,), "SAME", dimension_numbers=LAYOUT)


def arrays(shape, members=()):
    length, taps, _, channels, features = shape
    rng = np.random.default_rng(0)
    return (rng.normal(size=(*members, 3, length, channels)).astype(np.float32),
            rng.normal(size=(*members, taps, channels, features)).astype(np.float32))


def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_result_and_both_gradients_are_those_of_xla(shape):
    def measures(convolve):
        def loss(x, kernel):
            return jnp.sin(convolve(x, kernel, shape[2])).sum()

        def slope(x, kernel):
            return sum(jnp.square(part).sum() for part in jax.grad(loss, (0, 1))(x, kernel))

        return jax.jit(lambda x, kernel: (convolve(x, kernel, shape[2]), jax.grad(loss, (0, 1))(x, kernel),
                                          jax.grad(slope, (0, 1))(x, kernel)))(*arrays(shape))

    close(measures(convolve_time), measures(reference))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_members_each_have_their_own(axes):
    x, kernel = arrays(SHAPES[0], (2,))
    x, kernel = x if axes[0] == 0 else x[0], kernel if axes[1] == 0 else kernel[0]

    def gradients(convolve):
        return jax.jit(jax.vmap(jax.grad(lambda x, k: jnp.sin(convolve(x, k, 4)).sum(), (0, 1)), axes))(x, kernel)

    close(gradients(convolve_time), gradients(reference))


def test_the_module_is_a_one_dimensional_convolution_of_flax():
    x = arrays(SHAPES[0])[0]
    theirs, ours = nn.Conv(6, (8,), (4,)), TimeConv(6, 8, 4)
    variables = theirs.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x))
    close(ours.apply(variables, x), theirs.apply(variables, x))
    half = TimeConv(6, 8, 4, jnp.bfloat16)
    assert half.apply(variables, x).dtype == jnp.bfloat16
    gradient = jax.grad(lambda v: half.apply(v, x).astype(jnp.float32).sum())(variables)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
