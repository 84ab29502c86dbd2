"""Open sets: the boundary of the unknown class, from its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.open_set import open_set_adversarial


def loss(features, kernel, weights=None, **options):
    weights = jnp.ones(len(features)) if weights is None else weights
    return open_set_adversarial(features, weights, lambda x: x @ kernel, jnp.float32(1), **options)


@pytest.mark.parametrize("seed", range(20))
def test_the_loss_is_that_of_its_definition(seed):
    rng = np.random.default_rng(seed)
    n, d, k = rng.integers(1, 9), rng.integers(1, 6), rng.integers(2, 7)
    features, kernel, weights = rng.normal(size=(n, d)), 2 * rng.normal(size=(d, k)), rng.uniform(0.5, 2, n)
    t = rng.uniform(0.1, 0.9)
    p = scipy.special.softmax(features @ kernel, axis=1)[:, -1]
    expected = np.average(-t * np.log(p) - (1 - t) * np.log(1 - p), weights=weights)
    found, metrics = loss(*(jnp.asarray(a, jnp.float32) for a in (features, kernel, weights)), threshold=t)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert 0 <= metrics["unknown"] <= 1


def test_the_classifier_seeks_the_boundary_and_the_features_leave_it():
    features, kernel = jnp.asarray([[1.0, 0.5]]), jnp.asarray([[0.3, 0.9], [0.1, 0.4]])
    by_kernel = jax.grad(lambda w: loss(features, w)[0])(kernel)
    by_features = jax.grad(lambda x: loss(x, kernel)[0])(features)
    p = lambda x, w: jax.nn.softmax(x @ w)[0, -1]  # noqa: E731
    assert p(features, kernel) > 0.5
    assert p(features, kernel - 0.1 * by_kernel) < p(features, kernel) < p(features - 0.1 * by_features, kernel)
    plain = jax.grad(lambda x: loss(x, kernel, max_scale=-1.0)[0])(features)
    np.testing.assert_allclose(by_features, -plain, rtol=1e-6)


def test_scores_without_bound_stay_finite():
    scores = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, 0.0, 1e4]])
    value, gradient = jax.value_and_grad(lambda s: loss(s, jnp.eye(3))[0])(scores)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(("options", "message"), [({"threshold": 1.0}, "between 0 and 1")])
def test_faulty_options_are_explained(options, message):
    with pytest.raises(UserError, match=message):
        loss(jnp.ones((2, 3)), jnp.ones((3, 2)), **options)
    with pytest.raises(UserError, match="a last one for the rest"):
        loss(jnp.ones((2, 3)), jnp.ones((3, 1)))
