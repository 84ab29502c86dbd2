"""Penalties on parameters and on the entropy of predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from transfer_jax.core.errors import UserError
from transfer_jax.objectives import batch_spectral_shrinkage, l2_norm, l2_to_start
from transfer_jax.objectives import entropy as eager_entropy

RNG = np.random.default_rng(1)
entropy = jax.jit(eager_entropy, static_argnames="diversity")


def tree(seed):
    rng = np.random.default_rng(seed)
    shapes = {"backbone/conv/kernel": (3, 3, 2, 4), "backbone/conv/bias": (4,), "heads/digits/kernel": (4, 10)}
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}


def test_l2_to_start_is_the_whole_tree_sum_and_its_gradient_the_pull_back():
    now, start = tree(0), tree(1)
    paths = ("backbone/conv/kernel", "backbone/conv/bias")
    expected = 0.05 * sum(float(((np.asarray(now[p], np.float64) - start[p])**2).sum()) for p in paths)
    np.testing.assert_allclose(l2_to_start(now, start, alpha=0.1), expected, rtol=1e-5)
    gradient = jax.grad(lambda w: l2_to_start(w, start, alpha=0.1))(now)
    for path in paths:
        np.testing.assert_allclose(gradient[path], 0.1 * (now[path] - start[path]), rtol=1e-5)
    assert not np.any(gradient["heads/digits/kernel"])


def test_l2_to_start_starts_at_zero_and_does_not_move_the_start():
    start = tree(1)
    assert l2_to_start(start, start) == 0
    gradient = jax.grad(lambda w0: l2_to_start(tree(0), w0))(start)
    assert not any(np.any(leaf) for leaf in gradient.values())


def test_l2_norm_is_l2_to_a_start_of_zero():
    now = tree(0)
    zeros = jax.tree.map(jnp.zeros_like, now)
    np.testing.assert_allclose(l2_norm(now, beta=0.3), l2_to_start(now, zeros, alpha=0.3, include=".*"), rtol=1e-6)
    np.testing.assert_allclose(l2_norm(now, beta=2.0, include="heads/.*"),
                               np.sum(np.square(now["heads/digits/kernel"])), rtol=1e-5)


@pytest.mark.parametrize("include, words", [("backbon/.*", "matches none"), ("backbone", "matches none"),
                                            ("(", "not a valid regular expression")])
def test_regex_that_fits_nothing_is_an_error(include, words):
    with pytest.raises(UserError, match=words):
        l2_to_start(tree(0), tree(1), include=include)


def test_entropy_equals_scipy_and_has_its_bounds():
    logits = RNG.normal(0, 2, (9, 4)).astype(np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits))
    conditional = scipy.stats.entropy(probabilities, axis=1).mean()
    marginal = scipy.stats.entropy(probabilities.mean(0))
    np.testing.assert_allclose(entropy(logits, jnp.ones(9)), conditional, rtol=1e-5)
    np.testing.assert_allclose(entropy(logits, jnp.ones(9), diversity=0.5), conditional - 0.5 * marginal, rtol=1e-4)
    np.testing.assert_allclose(entropy(jnp.zeros((9, 4)), jnp.ones(9)), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(entropy(jnp.zeros((9, 4)), jnp.ones(9), diversity=1.0), 0, atol=1e-6)


def test_entropy_descends_to_confident_predictions_and_ignores_padding():
    logits = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
    weights = jnp.array([1.0, 1, 1, 1, 0, 0])
    gradient = jax.grad(entropy)(logits, weights)
    assert entropy(logits - gradient, weights) < entropy(logits, weights)
    assert not np.any(gradient[4:])
    np.testing.assert_allclose(entropy(logits, weights, diversity=1.0),
                               entropy(logits[:4], jnp.ones(4), diversity=1.0), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda z: entropy(z, weights, diversity=1.0))(logits * 1e4)).all()


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
@pytest.mark.parametrize("count", [1, 3])
def test_spectral_shrinkage_is_the_sum_of_the_smallest_squared_singular_values(shape, count):
    features = RNG.normal(size=shape)
    singular = np.linalg.svd(features)[1]
    found = batch_spectral_shrinkage(jnp.asarray(features, jnp.float32), strength=0.1, count=count)
    np.testing.assert_allclose(found, 0.1 * np.square(singular[-count:]).sum(), rtol=1e-3)


def test_the_gradient_of_spectral_shrinkage_is_right_and_exists_at_equal_singular_values():
    def slope(features, direction):
        ends = [np.square(np.linalg.svd(features + s * direction)[1][-2:]).sum() for s in (1e-5, -1e-5)]
        return (ends[0] - ends[1]) / 2e-5

    features, direction = RNG.normal(size=(9, 4)), RNG.normal(size=(9, 4))
    gradient = jax.grad(lambda f: batch_spectral_shrinkage(f, strength=1.0, count=2))
    np.testing.assert_allclose((gradient(jnp.asarray(features, jnp.float32)) * direction).sum(),
                               slope(features, direction), rtol=1e-3)
    same = gradient(jnp.eye(6, 4))
    assert np.isfinite(same).all() and np.abs(same).sum() > 0
    lower = features - 0.1 * np.asarray(gradient(jnp.asarray(features, jnp.float32)))
    assert np.linalg.svd(lower)[1][-1] < np.linalg.svd(features)[1][-1]


@pytest.mark.parametrize(("shape", "count"), [((2, 3, 3, 4), 1), ((4, 3), 4), ((4, 3), 0)])
def test_spectral_shrinkage_says_what_it_needs(shape, count):
    with pytest.raises(UserError, match="needs vectors"):
        batch_spectral_shrinkage(jnp.ones(shape), count=count)
