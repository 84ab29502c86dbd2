"""Critics and encoders that take turns: ADDA."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import confusion, domain_critic, domain_critic_to_start


def head_of(weight):
    return lambda x: jnp.tanh(x) @ weight


def written_out(x):
    total = 0.0
    for name, sign in (("source_features", 1), ("target_features", -1)):
        for row in x[name]:
            total += np.log1p(np.exp(-sign * np.tanh(row) @ x["weight"][:, 0])) / len(x[name]) / 2
    return total


def test_the_critic_descends_on_the_logistic_loss_and_the_features_stay():
    for seed in range(20):
        critic = (domain_critic, domain_critic_to_start)[seed % 2]
        rng = np.random.default_rng(seed)
        length = rng.integers(1, 6)
        arrays = {"source_features": rng.normal(size=(rng.integers(1, 9), length)),
                  "target_features": rng.normal(size=(rng.integers(1, 9), length)),
                  "weight": rng.normal(size=(length, 1))}
        agrees(lambda source_features, target_features, weight, critic=critic: critic(
            source_features, target_features, head_of(weight)),
               lambda x, c: written_out({**c, "weight": x["weight"]}), arrays, seed)


def test_the_names_say_which_encoder_sees_the_source():
    assert list(inspect.signature(domain_critic).parameters)[0] == "source_features"
    assert list(inspect.signature(domain_critic_to_start).parameters)[0] == "source_start_features"


def test_confusion_is_the_logistic_loss_with_inverted_labels():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        length = rng.integers(1, 6)
        arrays = {"target_features": rng.normal(size=(rng.integers(1, 9), length)),
                  "weight": rng.normal(size=(length, 1))}
        agrees(lambda target_features, weight: confusion(target_features, head_of(weight)),
               lambda x, _: np.mean([np.log1p(np.exp(-np.tanh(row) @ x["weight"][:, 0]))
                                     for row in x["target_features"]]), arrays, seed)


def test_in_turns_the_critic_learns_and_the_encoder_deceives_it():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(8, 3)), rng.normal(1, 1, (6, 3))
    weight = jnp.asarray(rng.normal(size=(3, 1)), jnp.float32)
    step = jax.grad(lambda w: domain_critic(source, target, head_of(w))[0])(weight)
    sharper = weight - 0.1 * step
    assert domain_critic(source, target, head_of(sharper))[0] < domain_critic(source, target, head_of(weight))[0]
    slope = jax.grad(lambda t: confusion(t, head_of(sharper)))(jnp.asarray(target))
    deceived = domain_critic(source, target - slope, head_of(sharper))
    assert deceived[0] > domain_critic(source, target, head_of(sharper))[0]


def test_confusion_keeps_its_slope_where_the_critic_is_sure():
    sure = jnp.full((1, 1), -50.0)
    np.testing.assert_allclose(jax.grad(lambda t: confusion(t, lambda x: x))(sure), -1.0)
    assert finite(lambda t: confusion(t, lambda x: x * 1e6), {"t": np.array([[-1.0], [1.0]])}) > 1e5


def test_maps_are_judged_pixel_by_pixel_and_a_second_output_is_refused():
    maps = np.random.default_rng(1).normal(size=(4, 2, 3, 5))
    weight = np.ones((5, 1))
    flat = domain_critic(maps[:1].reshape(-1, 5), maps[1:].reshape(-1, 5), lambda x: x @ weight)
    np.testing.assert_allclose(domain_critic(maps[:1], maps[1:], lambda x: x @ weight)[0], flat[0], rtol=1e-6)
    for call in (lambda head: confusion(maps, head), lambda head: domain_critic(maps, maps, head)):
        with pytest.raises(UserError, match="1 output"):
            call(lambda x: x @ np.ones((5, 2)))
