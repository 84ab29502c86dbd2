"""`materialized`, `shared` and `apart` change no value and no gradient; they keep programs small."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.layers import lowering
from transfer_jax.layers.convolution import convolve
from transfer_jax.layers.materialization import apart, materialized, shared
from transfer_jax.models import transformer
from transfer_jax.models.transformer import TransformerBlock


def behind_a_branch(x):
    return apart(lambda x: x, x)


IDENTITIES = [materialized, shared, behind_a_branch]


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("first", [1.5, -1.5, 0.0, -0.0, np.inf, np.nan])
def test_values_stay_bit_for_bit(identity, dtype, first):
    x = jnp.array([[first, 2.0], [-3.0, 4.0]], dtype)
    assert jax.jit(identity)(x).tobytes() == x.tobytes()


@pytest.mark.parametrize("identity", IDENTITIES)
def test_gradients_of_first_and_second_order_are_those_of_the_identity(identity):
    x = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3)

    def loss(x, through):
        return jnp.sin(through(x) * x).sum()

    for order in (jax.grad, lambda f: jax.grad(lambda x, through: jax.grad(f)(x, through).sum())):
        np.testing.assert_allclose(order(loss)(x, identity), order(loss)(x, lambda x: x), rtol=1e-6)


@pytest.mark.parametrize("identity", IDENTITIES)
def test_members_and_scans_see_the_identity(identity):
    x = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)
    np.testing.assert_array_equal(jax.vmap(identity)(x), x)
    _, rows = jax.lax.scan(lambda carry, row: (carry, identity(row)), 0, x)
    np.testing.assert_array_equal(rows, x)


SHARDED = """
import jax, jax.numpy as jnp
from transfer_jax.layers.materialization import materialized
mesh = jax.make_mesh((4,), ("data",))
rows = jax.NamedSharding(mesh, jax.P("data"))
x = jnp.linspace(-1.0, 1.0, 24).reshape(8, 3)
gradient = jax.jit(jax.grad(lambda x: (materialized(jnp.sin(x)) ** 2).sum()), in_shardings=rows, out_shardings=rows)
assert jnp.allclose(gradient(jax.device_put(x, rows)), jnp.sin(2 * x), atol=1e-6)
print(jax.device_count())
"""


def test_arrays_that_lie_on_several_devices():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment,
                          timeout=300, check=False, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "4", done.stderr


def _widest_fusion(depth):
    """How many arrays the widest fusion reads in the gradient of a transformer."""
    block, x = TransformerBlock(heads=2, mlp_width=32), jnp.ones((2, 5, 16))
    variables = [block.init(jax.random.key(0), x, False)] * depth

    def loss(variables):
        return functools.reduce(lambda x, block_variables: block.apply(block_variables, x, True), variables, x).sum()

    text = jax.jit(jax.grad(loss)).lower(variables).compile().as_text()
    return max(body.count(" parameter(") for body in text.split("\n\n") if body.startswith("%fused"))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only programs for a CPU have these extra stores")
def test_no_block_reads_what_all_later_blocks_sent(monkeypatch):
    assert _widest_fusion(4) == _widest_fusion(2)
    monkeypatch.setattr(transformer, "materialized", lambda x: x)
    assert _widest_fusion(4) > _widest_fusion(2)


def _most_read_by_a_transposition():
    """How many arrays a transposition reads in the gradient of a residual block's activation and convolution."""
    images, kernel = [jnp.ones((4, 8, 8, 8))] * 3, jnp.ones((3, 3, 8, 8))

    def loss(kernel, stream, residual, weights):
        return (convolve(jnp.maximum(stream + residual, 0.0), kernel) * weights).sum()

    text = jax.jit(jax.value_and_grad(loss)).lower(kernel, *images).compile().as_text()
    fusions = [body for body in text.split("\n\n") if body.startswith("%fused") and " transpose(" in body]
    return max(body.count(" parameter(") for body in fusions)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only programs for a CPU have these extra stores")
def test_no_kernel_gradient_computes_what_the_convolution_read(monkeypatch):
    before = _most_read_by_a_transposition()
    monkeypatch.setattr(lowering, "shared", lambda x: x)
    assert before == 1 < _most_read_by_a_transposition()
