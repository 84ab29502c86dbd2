"""MixStyle: statistics of two examples mixed, content kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.layers.mix_style import mix_style

MAPS = np.random.default_rng(0).normal([[[[1, -2, 0]]]], [[[[1, 0.5, 3]]]], (6, 4, 5, 3)).astype(np.float32)
MIX = jax.jit(mix_style, static_argnames=("probability", "alpha", "epsilon"))


def moments(x):
    return np.mean(x, axis=(1, 2)), np.std(x, axis=(1, 2))


def test_new_statistics_are_one_mixture_of_those_of_a_pair_of_examples():
    mixed = np.asarray(MIX(MAPS, jax.random.key(1), probability=1.0))
    mean, deviation = moments(MAPS)
    new_mean, new_deviation = moments(mixed)
    partners = set()
    for i in range(6):
        for j in range(6):
            direction = np.concatenate([mean[i] - mean[j], deviation[i] - deviation[j]])
            change = np.concatenate([new_mean[i] - mean[j], new_deviation[i] - deviation[j]])
            share = change @ direction / max(direction @ direction, 1e-12)
            if np.allclose(change, share * direction, atol=1e-4) and -1e-4 <= share <= 1 + 1e-4:
                partners.add(i)
    assert partners == set(range(6))
    assert not np.allclose(mixed, MAPS, atol=1e-2)


def test_content_stays():
    mixed = np.asarray(MIX(MAPS, jax.random.key(1), probability=1.0))
    normalised = [(x - m[:, None, None]) / s[:, None, None] for x, (m, s) in ((MAPS, moments(MAPS)),
                                                                            (mixed, moments(mixed)))]
    np.testing.assert_allclose(*normalised, atol=1e-3)


def test_it_acts_as_often_as_it_is_told():
    keys = jax.random.split(jax.random.key(0), 400)
    moved = [np.any(MIX(MAPS, key, probability=0.3) != MAPS) for key in keys]
    assert abs(np.mean(moved) - 0.3) < 0.08
    np.testing.assert_array_equal(MIX(MAPS, keys[0], probability=0.0), MAPS)


def test_the_statistics_have_no_gradient():
    def loss(x):
        return jnp.sum(mix_style(x, jax.random.key(1), probability=1.0) * MAPS)

    slope, mixed = jax.grad(loss)(MAPS), MIX(MAPS, jax.random.key(1), probability=1.0)
    scale = moments(mixed)[1] / moments(MAPS)[1]  # the map is affine with constants
    np.testing.assert_allclose(slope, scale[:, None, None] * MAPS, rtol=1e-3, atol=1e-4)


def test_styles_come_from_other_domains_where_there_are_some():
    styles = np.concatenate([np.zeros((3, 4, 4, 1)), 10 * np.ones((3, 4, 4, 1))]).astype(np.float32)
    styles += 0.1 * np.random.default_rng(1).normal(size=styles.shape).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), 50)
    mixed = [MIX(styles, key, probability=1.0, alpha=1.0, domains=jnp.array([0, 0, 0, 1, 1, 1])) for key in keys]
    means = np.mean(np.stack(mixed), axis=(2, 3, 4))
    assert np.all(np.abs(means.mean(0) - 5) < 2)  # every example meets the other side, share uniform
    alone = mix_style(styles, keys[0], probability=1.0, domains=jnp.zeros(6, int))
    np.testing.assert_allclose(alone, styles, atol=1e-5)


@pytest.mark.parametrize("maps", [np.ones((1, 1, 1, 2)), np.zeros((3, 2, 2, 2))], ids=["single", "constant"])
def test_constant_maps_and_single_examples_stay_finite(maps):
    for seed in range(5):
        out, slope = jax.value_and_grad(lambda x, key: jnp.sum(MIX(x, key, probability=1.0)))(
            jnp.asarray(maps), jax.random.key(seed))
        assert np.isfinite(out) and np.isfinite(slope).all()


def test_the_dtype_stays():
    assert mix_style(jnp.asarray(MAPS, jnp.bfloat16), jax.random.key(0)).dtype == jnp.bfloat16
