"""VAT: the divergence in the worst direction, and that the direction is the worst one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import virtual_adversarial
from transfer_jax.objectives.virtual_adversarial import unit as unit_of

KEY = jax.random.key(5)


def model(hidden, out):
    return lambda x: jnp.tanh(x.reshape(len(x), -1) @ hidden) @ out


def draw(rng):
    shape = tuple(rng.integers(1, 4, 3)) if rng.integers(2) else (rng.integers(2, 8),)
    return {"inputs": rng.normal(size=(rng.integers(1, 6), *shape)),
            "hidden": rng.normal(size=(int(np.prod(shape)), 5)), "out": rng.normal(size=(5, rng.integers(2, 5)))}


def divergences(x, moved, p):
    """KL(p | p(moved)) of every example."""
    q = softmax(np.tanh(moved.reshape(len(moved), -1) @ x["hidden"]) @ x["out"])
    return np.sum(p * (np.log(p) - np.log(q)), axis=1)


def slope_of_divergences(x, moved, p):
    """Its gradient in the input, by hand: (1 - tanh^2) (q - p) out' behind the hidden layer."""
    h = np.tanh(moved.reshape(len(moved), -1) @ x["hidden"])
    return ((((softmax(h @ x["out"]) - p) @ x["out"].T) * (1 - h**2)) @ x["hidden"].T).reshape(moved.shape)


def unit(v):
    return np.stack([row / max(np.sqrt(np.sum(row**2)), 1e-30) for row in v])


def definition(x, constants, radius, iterations):
    inputs = constants["inputs"]
    p = softmax(np.tanh(inputs.reshape(len(inputs), -1) @ constants["hidden"]) @ constants["out"])
    direction = unit(np.asarray(jax.random.normal(KEY, inputs.shape), np.float64))
    for _ in range(iterations):
        direction = unit(slope_of_divergences(constants, inputs + 1e-2 * direction, p))
    return np.mean(divergences(x, inputs + radius * direction, p))


def test_it_is_its_definition_in_float32_as_in_float64():
    for seed in range(20):
        options = {"radius": (1.0, 0.2)[seed % 2], "iterations": 1 + seed % 2}
        agrees(lambda inputs, hidden, out, options=options: virtual_adversarial(
            inputs, model(hidden, out), jnp.ones(len(inputs)), KEY, **options),
            lambda x, c, options=options: definition(x, c, **options), draw(np.random.default_rng(seed)), seed,
            rtol=5e-3, slope_rtol=5e-3, slope_atol=1e-4)


def test_the_direction_is_worse_than_random_ones_and_iterations_do_not_spoil_it():
    rng = np.random.default_rng(3)
    arrays = {name: rng.normal(size=shape).astype(np.float32)
              for name, shape in (("inputs", (5, 6)), ("hidden", (6, 5)), ("out", (5, 3)))}
    apply = model(arrays["hidden"], arrays["out"])
    ones = jnp.ones(len(arrays["inputs"]))
    few, many = (virtual_adversarial(arrays["inputs"], apply, ones, KEY, radius=0.1, iterations=n)[0] for n in (1, 20))
    p = softmax(np.asarray(apply(arrays["inputs"]), np.float64))
    random = [np.mean(divergences(arrays, arrays["inputs"] + 0.1 * unit(rng.normal(size=arrays["inputs"].shape)), p))
              for _ in range(200)]
    assert few > np.mean(random) and many >= 0.99 * max(random)


def test_descending_smooths_the_model():
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in draw(np.random.default_rng(4)).items()}

    def loss(out):
        return virtual_adversarial(arrays["inputs"], model(arrays["hidden"], out), jnp.ones(len(arrays["inputs"])),
                                   KEY)[0]

    assert loss(arrays["out"] - 0.1 * jax.grad(loss)(arrays["out"])) < loss(arrays["out"])


def test_a_model_blind_to_its_input_costs_nothing():
    arrays = {"inputs": np.ones((2, 3)), "out": np.zeros((3, 2))}
    assert finite(lambda inputs, out: virtual_adversarial(inputs, lambda x: x @ out, jnp.ones(2), KEY), arrays) == 0
    metrics = virtual_adversarial(jnp.ones((2, 3)), lambda x: x @ jnp.zeros((3, 2)), jnp.ones(2), KEY)[1]
    assert metrics["perturbation_length"] == 0


def test_small_slopes_do_not_underflow_and_padding_does_not_count():
    np.testing.assert_allclose(unit_of(jnp.array([[3e-30, 4e-30], [0, 0]])), [[0.6, 0.8], [0, 0]], rtol=1e-5)
    x, weight = np.random.default_rng(1).normal(size=(2, 4, 3))
    both = virtual_adversarial(x, lambda x: x @ weight.T, jnp.array([1.0, 1, 0, 0]), KEY)[0]
    x[2:] = 7
    np.testing.assert_allclose(virtual_adversarial(x, lambda x: x @ weight.T, jnp.array([1.0, 1, 0, 0]), KEY)[0], both,
                               rtol=1e-5)


def test_misfits_are_told():
    with pytest.raises(UserError, match="tokens"):
        virtual_adversarial(jnp.ones((2, 3), jnp.int32), lambda x: x, jnp.ones(2), KEY)
    with pytest.raises(UserError, match="numbers > 0"):
        virtual_adversarial(jnp.ones((2, 3)), lambda x: x, jnp.ones(2), KEY, radius=0.0)
