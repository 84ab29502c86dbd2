"""Noise on parameters against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.params.weight_noise import WeightNoiseSpec, make_noise, mixout

RNG = np.random.default_rng(2)
NOW, START = (jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32) for _ in range(2))


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_mixout_takes_elements_of_the_start_and_scales(p):
    key = jax.random.key(4)
    mask = 1 - np.asarray(jax.random.bernoulli(key, 1 - p, NOW.shape), np.float64)
    assert 0 < mask.sum() < mask.size
    now, start = np.asarray(NOW, np.float64), np.asarray(START, np.float64)
    np.testing.assert_allclose(mixout(NOW, START, key, p=p), (mask * start + (1 - mask) * now - p * start) / (1 - p),
                               rtol=1e-4, atol=1e-5)
    # The gradient reaches the elements that were not replaced, scaled likewise.
    gradient = jax.grad(lambda leaf: mixout(leaf, START, key, p=p).sum())(NOW)
    np.testing.assert_allclose(gradient, (1 - mask) / (1 - p), rtol=1e-5)


def test_its_mean_is_the_parameter_and_without_p_it_is_nothing():
    keys = jax.random.split(jax.random.key(0), 20000)
    mean = jax.vmap(lambda key: mixout(NOW, START, key, p=0.5))(keys).mean(0)
    np.testing.assert_allclose(mean, NOW, atol=0.08)  # five standard errors of the widest element
    assert mixout(NOW, START, keys[0], p=0) is NOW
    np.testing.assert_array_equal(mixout(START, START, keys[0], p=0.7), START)


def test_each_leaf_has_a_mask_of_its_own_and_heads_are_left_alone():
    leaves = {"backbone/a": NOW, "backbone/b": NOW, "heads/h": NOW}
    start = dict.fromkeys(leaves, START)
    noise = make_noise(WeightNoiseSpec(kind="mixout", p=0.5), list(leaves), "where")
    found = noise(leaves, start, jax.random.key(1))
    assert found["heads/h"] is NOW and (found["backbone/a"] != found["backbone/b"]).any()
    alone = noise({"backbone/b": NOW}, start, jax.random.key(1))  # whatever else moves
    np.testing.assert_array_equal(alone["backbone/b"], found["backbone/b"])


def test_faults_are_named():
    with pytest.raises(UserError, match="invalid regular expression|valid regular"):
        make_noise(WeightNoiseSpec(kind="mixout", include="("), ["a"], "where")
    with pytest.raises(UserError, match="did you mean 'p'|no argument|unknown"):
        make_noise(WeightNoiseSpec(kind="mixout", q=0.5), ["a"], "where")
