"""WDGRL: a critic with a penalty on its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import wasserstein_critic, wasserstein_distance
from transfer_jax.objectives.wasserstein import interpolates

KEY = jax.random.key(3)


def critic(hidden, out):
    return lambda h: jnp.tanh(h.reshape(len(h), -1) @ hidden) @ out


def draw(rng, maps=False):
    shape = tuple(rng.integers(1, 4, 3)) if maps else (rng.integers(1, 6),)
    length = int(np.prod(shape))
    return {"source_features": rng.normal(size=(rng.integers(1, 8), *shape)),
            "target_features": rng.normal(size=(rng.integers(1, 8), *shape)),
            "hidden": rng.normal(size=(length, 4)), "out": rng.normal(size=(4, 1))}


def score(row, x):
    return np.tanh(row.ravel() @ x["hidden"]) @ x["out"][:, 0]


def difference(x):
    return np.mean([score(row, x) for row in x["source_features"]]) - np.mean(
        [score(row, x) for row in x["target_features"]])


def test_the_distance_is_the_difference_of_mean_scores():
    for seed in range(20):
        agrees(lambda source_features, target_features, hidden, out: wasserstein_distance(
            source_features, target_features, critic(hidden, out)), lambda x, _: difference(x),
            draw(np.random.default_rng(seed), maps=seed % 3 == 0), seed)


def test_the_critic_has_its_penalty_at_the_points_and_leaves_the_features_alone():
    for seed in range(20):
        ends = seed % 2 == 0
        arrays = draw(np.random.default_rng(seed), maps=seed % 3 == 0)

        def definition(x, constants, ends=ends):
            x = {**constants, "hidden": x["hidden"], "out": x["out"]}
            source, target = (np.asarray(x[name], np.float32) for name in ("source_features", "target_features"))
            points = list(np.asarray(interpolates(source, target, KEY), np.float64))
            points += list(x["source_features"]) + list(x["target_features"]) if ends else []
            penalties = []
            for point in points:  # the derivative of the hand-written critic, by hand
                slope = x["hidden"] @ ((1 - np.tanh(point.ravel() @ x["hidden"])**2) * x["out"][:, 0])
                penalties.append((np.sqrt(np.sum(slope**2)) - 1)**2)
            return 7.0 * np.mean(penalties) - difference(x)

        agrees(lambda source_features, target_features, hidden, out, ends=ends: wasserstein_critic(
            source_features, target_features, critic(hidden, out), KEY, penalty=7.0, ends=ends), definition, arrays,
            seed)


def test_the_points_lie_between_their_pairs_also_of_unequal_batches():
    source, target = np.zeros((3, 2)), 1 + np.arange(5.0)[:, None] * np.ones((5, 2))
    points = interpolates(source, target, KEY)
    shares = points / target
    assert points.shape == (5, 2) and np.all((shares > 0) & (shares < 1))
    np.testing.assert_allclose(shares[:, 0], shares[:, 1], rtol=1e-6)  # one draw per pair
    assert len(np.unique(shares[:, 0])) == 5


def test_the_critic_raises_the_distance_that_the_encoder_lowers():
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in draw(np.random.default_rng(1)).items()}

    def distance(x):
        return wasserstein_distance(x["source_features"], x["target_features"], critic(x["hidden"], x["out"]))

    def loss(x):
        return wasserstein_critic(x["source_features"], x["target_features"], critic(x["hidden"], x["out"]), KEY,
                                  penalty=0.0)[0]

    up, down = jax.grad(loss)(arrays), jax.grad(distance)(arrays)
    assert distance({**arrays, "out": arrays["out"] - 0.1 * up["out"]}) > distance(arrays)
    moved = {name: arrays[name] - 0.1 * down[name] for name in ("source_features", "target_features")}
    assert distance({**arrays, **moved}) < distance(arrays)


def test_a_critic_of_slope_one_pays_nothing_and_metrics_say_so():
    unit = np.array([[0.6], [0.8]])
    source, target = np.random.default_rng(0).normal(size=(2, 6, 2))
    loss, metrics = wasserstein_critic(source, target, lambda h: h @ unit, KEY)
    np.testing.assert_allclose(loss, -metrics["wasserstein_distance"], rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_length"], 1.0, rtol=1e-6)


def test_a_dead_critic_and_single_examples_stay_finite():
    arrays = {"source": np.zeros((1, 3)), "target": np.zeros((1, 3)), "hidden": np.zeros((3, 4)),
              "out": np.zeros((4, 1))}
    value = finite(lambda source, target, hidden, out: wasserstein_critic(source, target, critic(hidden, out), KEY),
                   arrays)
    assert value == 10.0


def test_a_second_output_is_refused():
    with pytest.raises(UserError, match="1 output"):
        wasserstein_distance(jnp.ones((2, 3)), jnp.ones((2, 3)), lambda x: x)
