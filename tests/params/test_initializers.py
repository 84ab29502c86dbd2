"""Random starts by name have the spread that their papers give, and change kernels alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.params.initializers import INITIALIZERS, redrawn

PARAMS = {"a/kernel": jnp.zeros((3, 3, 16, 64)), "a/bias": jnp.ones(64), "b/kernel": jnp.zeros((64, 32)),
          "b/scale": jnp.ones(32)}
INPUTS, OUTPUTS = 9 * 16, 9 * 64
SPREAD = {"xavier": np.sqrt(2 / (INPUTS + OUTPUTS)), "he": np.sqrt(2 / INPUTS), "lecun": np.sqrt(1 / INPUTS),
          "uniform": 0.05 / np.sqrt(3), "normal": 0.01, "constant": 0.0}


def drawn(kind, seed=0, params=PARAMS, **arguments):
    return redrawn(Component(kind=kind, **arguments), params, jnp.uint32(seed))


@pytest.mark.parametrize("kind", [kind for kind in INITIALIZERS if kind != "orthogonal"])
def test_kernels_have_the_spread_of_the_formula_and_nothing_else_changes(kind):
    found = drawn(kind)
    assert found["a/bias"] is PARAMS["a/bias"] and found["b/scale"] is PARAMS["b/scale"]
    assert np.isclose(np.std(found["a/kernel"]), SPREAD[kind.split("_")[0]], rtol=0.05)
    if kind.endswith("uniform"):
        bound = np.sqrt(3) * SPREAD[kind.split("_")[0]]
        assert 0.98 * bound < np.abs(found["a/kernel"]).max() <= bound * (1 + 1e-6)


def test_orthogonal_columns_are_orthogonal():
    matrix = np.asarray(drawn("orthogonal", gain=2.0)["b/kernel"])
    assert np.allclose(matrix.T @ matrix, 4 * np.eye(32), atol=1e-4)


def test_gain_multiplies_and_draws_depend_on_path_and_seed_alone():
    assert np.allclose(drawn("he_normal", gain=3.0)["b/kernel"], 3 * drawn("he_normal")["b/kernel"], rtol=1e-5)
    alone = drawn("he_normal", params={"b/kernel": PARAMS["b/kernel"]})
    assert np.array_equal(alone["b/kernel"], drawn("he_normal")["b/kernel"])
    assert not np.array_equal(drawn("he_normal", 1)["b/kernel"], drawn("he_normal")["b/kernel"])
    both = jax.vmap(lambda seed: drawn("uniform", seed)["b/kernel"])(jnp.arange(2, dtype=jnp.uint32))
    assert not np.array_equal(both[0], both[1])


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(UserError, match="unknown initializer 'xavier'"):
        drawn("xavier")
    with pytest.raises(UserError, match="no leaf called 'kernel'"):
        drawn("normal", params={"a/bias": PARAMS["a/bias"]})
