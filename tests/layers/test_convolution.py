"""The convolution against `nn.Conv`: values and gradients over every form, members, loops, dtypes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from transfer_jax.layers.convolution import Conv, convolve
from transfer_jax.layers.lowering import Geometry

# (image size, channels, features, kernel, strides, padding, groups): each picks another form of one of the three.
CASES = {
    "plain": ((9, 8), 8, 8, (3, 3), (1, 1), "SAME", 1),
    "pieces": ((40, 36), 8, 5, (3, 3), (1, 1), "SAME", 1),
    "valid": ((9, 8), 8, 12, (3, 2), (1, 1), "VALID", 1),
    "strided": ((9, 8), 8, 6, (3, 3), (2, 2), "SAME", 1),
    "uneven strides": ((11, 9), 9, 4, (3, 5), (3, 2), ((2, 1), (0, 3)), 1),
    "stride beyond kernel": ((9, 9), 8, 4, (2, 2), (3, 3), "VALID", 1),
    "few channels": ((8, 8), 3, 16, (3, 3), (1, 1), 1, 1),
    "few channels, wide": ((9, 9), 3, 50, (5, 5), (1, 1), "SAME", 1),
    "few channels, strided": ((15, 16), 3, 8, (7, 7), (2, 2), 3, 1),
    "few channels, stride beyond kernel": ((9, 9), 3, 4, (2, 2), (3, 3), ((1, 0), (0, 2)), 1),
    "one channel, uneven strides": ((11, 9), 1, 4, (3, 5), (3, 2), ((2, 1), (0, 3)), 1),
    "large, strided": ((57, 56), 8, 6, (3, 3), (2, 2), 1, 1),
    "large, uneven strides": ((84, 56), 8, 4, (3, 5), (3, 2), ((2, 1), (0, 3)), 1),
    "large, stride beyond kernel": ((84, 84), 8, 4, (2, 2), (3, 3), "VALID", 1),
    "one channel": ((9, 9), 1, 4, (5, 5), (1, 1), (2, 1), 1),
    "wide": ((8, 8), 8, 50, (5, 5), (1, 1), "SAME", 1),
    "cramped": ((2, 2), 8, 8, (3, 3), (1, 1), "SAME", 1),
    "cramped result": ((4, 4), 8, 8, (3, 3), (2, 2), "SAME", 1),
    "one pixel": ((1, 1), 5, 8, (3, 3), (1, 1), "SAME", 1),
    "pointwise": ((5, 6), 7, 3, (1, 1), (1, 1), "SAME", 1),
    "pointwise strided": ((5, 6), 7, 3, (1, 1), (2, 2), "VALID", 1),
    "pointwise padded": ((5, 6), 7, 3, (1, 1), (1, 1), 1, 1),
    "more padding than kernel": ((5, 6), 8, 4, (2, 2), (1, 1), ((3, 0), (0, 4)), 1),
    "depthwise": ((8, 7), 6, 6, (3, 3), (1, 1), "SAME", 6),
    "depthwise strided, multiplied": ((8, 7), 6, 12, (3, 3), (2, 2), "SAME", 6),
    "depthwise, large kernel": ((9, 7), 8, 8, (7, 7), (1, 1), 3, 8),
    "depthwise, uneven strides": ((11, 9), 5, 5, (3, 5), (3, 2), ((2, 1), (0, 3)), 5),
    "depthwise, stride beyond kernel": ((9, 9), 4, 4, (2, 2), (3, 3), "VALID", 4),
    "depthwise, many strips": ((30, 40), 64, 64, (3, 3), (1, 1), 1, 64),
    "depthwise, one pixel": ((1, 1), 6, 6, (3, 3), (1, 1), "SAME", 6),
    "grouped": ((8, 7), 6, 4, (3, 3), (1, 1), "SAME", 2),
    "grouped, strided": ((8, 7), 12, 24, (3, 3), (2, 2), 1, 3),
    "very many groups": ((5, 5), 130, 65, (3, 3), (1, 1), 1, 65),
    "patches": ((8, 12), 3, 5, (4, 4), (4, 4), "VALID", 1),
    "patches that leave a rest": ((9, 8), 3, 5, (2, 3), (2, 3), "VALID", 1),
    "patches of one channel": ((8, 8), 1, 5, (2, 2), (2, 2), "VALID", 1),
}
MORE = ["depthwise", "depthwise strided, multiplied", "depthwise, many strips", "grouped", "patches"]


def reference(x, kernel, strides, padding, groups):
    padding = padding if isinstance(padding, str | int) else [(p, p) if isinstance(p, int) else p for p in padding]
    layer = nn.Conv(kernel.shape[3], kernel.shape[:2], strides, padding, feature_group_count=groups, use_bias=False)
    return layer.apply({"params": {"kernel": kernel}}, x)


def operands(size, channels, features, kernel, groups, members=()):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*members, 4, *size, channels)).astype(np.float32)
    k = rng.normal(size=(*members, *kernel, channels // groups, features)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(k)


def close(a, b, tolerance=2e-5):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = float(jnp.abs(other).max()) + 1e-6
        np.testing.assert_allclose(np.asarray(one, np.float32) / scale, np.asarray(other, np.float32) / scale,
                                   atol=tolerance)


def value_and_gradients(function):
    def run(x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))
    return run


@pytest.mark.parametrize("case", CASES)
def test_equals_flax_in_value_and_gradients(case):
    size, channels, features, kernel, strides, padding, groups = CASES[case]
    x, k = operands(size, channels, features, kernel, groups)
    ours = jax.jit(value_and_gradients(lambda x, k: convolve(x, k, strides, padding, groups)))(x, k)
    flax = jax.jit(value_and_gradients(lambda x, k: reference(x, k, strides, padding, groups)))(x, k)
    close(ours, flax)


@pytest.mark.parametrize("case", ["plain", "strided", "few channels", "few channels, strided", "cramped", "pointwise",
                                  *MORE])
@pytest.mark.parametrize("mapped", [(0, 0), (0, None), (None, 0)])
def test_members_under_vmap_equal_members_one_by_one(case, mapped, request):
    if mapped != (0, 0):  # one of the three as users run it
        request.getfixturevalue("quick_unless_all")
    size, channels, features, kernel, strides, padding, groups = CASES[case]
    x, k = operands(size, channels, features, kernel, groups, members=(3,))
    x, k = (a if axis == 0 else a[0] for a, axis in zip((x, k), mapped, strict=True))
    one = value_and_gradients(lambda x, k: convolve(x, k, strides, padding, groups))
    together = jax.jit(jax.vmap(one, mapped))(x, k)
    apart = [jax.jit(one)(x if mapped[0] is None else x[i], k if mapped[1] is None else k[i]) for i in range(3)]
    close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart))


def test_many_members_and_members_of_members():
    x, k = operands((6, 6), 8, 4, (3, 3), 1, members=(2, 5))
    one = value_and_gradients(convolve)
    together = jax.jit(jax.vmap(jax.vmap(one)))(x, k)
    flat = jax.jit(jax.vmap(one))(x.reshape(10, *x.shape[2:]), k.reshape(10, *k.shape[2:]))  # 10: the looped form
    close(together, jax.tree.map(lambda a: a.reshape(2, 5, *a.shape[1:]), flat))
    alone = jax.jit(one)
    single = [alone(x[i, j], k[i, j]) for i, j in itertools.product(range(2), range(5))]
    close(flat, jax.tree.map(lambda *leaves: jnp.stack(leaves), *single))


@pytest.mark.usefixtures("quick_unless_all")
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_descent_inside_a_loop_equals_descent_outside(groups):
    x, k = operands((8, 8), 8, 8, (3, 3), groups, members=(2,))

    @jax.jit
    def step(k):
        def loss(k, x):
            return jnp.square(jax.checkpoint(lambda x, k: convolve(x, k, groups=groups))(x, k)).mean()
        return k - 1e-3 * jax.vmap(jax.grad(loss))(k, x)

    inside = jax.jit(lambda k: lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, step(c[1])), (0, k))[1])(k)
    scanned = jax.jit(lambda k: lax.scan(lambda k, _: (step(k), None), k, length=4)[0])(k)
    outside = k
    for _ in range(4):
        outside = step(outside)
    close(inside, outside)
    close(scanned, outside)
    assert float(jnp.abs(inside - k).max()) > 1e-4


@pytest.mark.usefixtures("quick_unless_all")
@pytest.mark.parametrize("groups", [1, 8])
def test_second_derivative_equals_flax(groups):
    x, k = operands((6, 6), 8, 8, (3, 3), groups)

    def penalty(conv):  # the gradient penalty of a critic: a gradient of a gradient to the input
        def value(x, k):
            return jnp.square(jax.grad(lambda x: jnp.tanh(conv(x, k)).sum())(x)).sum()
        return jax.jit(jax.grad(value, (0, 1)))(x, k)

    ours = penalty(lambda x, k: convolve(x, k, groups=groups))
    close(ours, penalty(lambda x, k: reference(x, k, (1, 1), "SAME", groups)), 1e-4)


@pytest.mark.usefixtures("quick_unless_all")
@pytest.mark.parametrize("case", ["plain", "strided", "few channels", "cramped", "pointwise", "pieces",
                                  "few channels, strided", "large, strided", *MORE])
def test_bfloat16_is_close_to_float32(case):
    size, channels, features, kernel, strides, padding, groups = CASES[case]
    x, k = operands(size, channels, features, kernel, groups)
    run = value_and_gradients(lambda x, k: convolve(x, k, strides, padding, groups))
    low = jax.jit(run)(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(low))
    close(low, jax.jit(run)(x, k), 0.03)


@pytest.mark.usefixtures("quick_unless_all")
@pytest.mark.parametrize("kernel_size", [3, (3, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_module_has_the_parameters_of_flax(kernel_size, use_bias):
    x = jnp.ones((2, 8, 8, 3))
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    ours, flax = Conv(4, kernel_size, 2, use_bias=use_bias), nn.Conv(4, size, 2, use_bias=use_bias)
    a, b = (jax.jit(layer.init)(jax.random.key(1), x) for layer in (ours, flax))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(bool((p == q).all()) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    close(jax.jit(ours.apply)(a, x), jax.jit(flax.apply)(b, x))
    assert jax.eval_shape(ours.clone(dtype=jnp.bfloat16).apply, a, x).dtype == jnp.bfloat16


def test_empty_batch_and_geometry():
    assert convolve(jnp.zeros((0, 8, 8, 8)), jnp.zeros((3, 3, 8, 4))).shape == (0, 8, 8, 4)
    x, k = jnp.zeros((0, 8, 8, 8)), jnp.zeros((3, 3, 1, 8))
    assert jax.grad(lambda k: convolve(x, k, groups=8).sum())(k).shape == k.shape
    geometry = Geometry((7, 8), (3, 3), (2, 2), ((1, 1), (0, 1)))
    assert geometry.output == (4, 4) and not geometry.cramped
