"""Terms on unlabelled predictions: information maximisation, class confusion, nuclear norm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import class_confusion, entropy, information_maximization, nuclear_norm


def draw(rng):
    batch, classes = rng.integers(1, 9), rng.integers(2, 7)
    return {"logits": rng.normal(0, 2, (batch, classes)), "weights": rng.integers(1, 4, batch)}


def information(x, _):
    p, w = softmax(x["logits"]), x["weights"] / x["weights"].sum()
    conditional = -sum(w[i] * sum(p[i, k] * np.log(p[i, k]) for k in range(p.shape[1])) for i in range(len(p)))
    mean = [sum(w[i] * p[i, k] for i in range(len(p))) for k in range(p.shape[1])]
    return conditional + sum(m * np.log(m) for m in mean)


def confusion(x, constants, temperature=2.5):
    y, fixed = softmax(x["logits"] / temperature), softmax(constants["logits"] / temperature)
    sure = x["weights"] * (1 + np.exp(np.sum(fixed * np.log(fixed), axis=1)))
    sure = len(y) * sure / sure.sum()
    classes = y.shape[1]
    matrix = np.array([[sum(sure[i] * y[i, a] * y[i, b] for i in range(len(y))) for b in range(classes)]
                       for a in range(classes)])
    matrix /= matrix.sum(axis=1, keepdims=True)
    return (matrix.sum() - np.trace(matrix)) / classes


def nuclear(x, _):
    rows = np.repeat(softmax(x["logits"]), x["weights"], axis=0)
    return -np.linalg.svd(rows)[1].sum() / len(rows)


@pytest.mark.parametrize(("term", "definition"), [(information_maximization, information), (class_confusion, confusion),
                                                  (nuclear_norm, nuclear)])
def test_the_terms_are_their_definitions(term, definition):
    for seed in range(20):
        agrees(term, definition, draw(np.random.default_rng(seed)), seed)


def test_class_confusion_at_other_temperatures():
    for seed, temperature in enumerate((0.5, 1.0, 5.0)):
        agrees(functools.partial(class_confusion, temperature=temperature),
               functools.partial(confusion, temperature=temperature), draw(np.random.default_rng(seed)), seed)


@pytest.mark.parametrize(("term", "best"), [(information_maximization, -np.log(3)), (class_confusion, 0.0),
                                            (nuclear_norm, -1.0)])
def test_sure_and_diverse_predictions_are_the_best_ones(term, best):
    ones = jnp.ones(3)
    spread, collapsed, unsure = 1e3 * np.eye(3), 1e3 * np.eye(3)[[0, 0, 0]], np.zeros((3, 3))
    np.testing.assert_allclose(term(spread, ones), best, atol=1e-6)
    assert term(unsure, ones) > best + 0.05
    if term is not class_confusion:  # which asks for no diversity of a batch
        assert term(collapsed, ones) > best + 0.05
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    slope = jax.grad(term)(logits, jnp.ones(6))
    assert term(logits - 0.1 * slope, jnp.ones(6)) < term(logits, jnp.ones(6))


@pytest.mark.parametrize("term", [information_maximization, class_confusion, nuclear_norm])
def test_padding_counts_for_nothing_and_a_batch_without_weight_is_zero(term):
    logits = np.random.default_rng(1).normal(size=(5, 3))
    padded = term(logits, jnp.array([1.0, 1, 1, 0, 0]))
    np.testing.assert_allclose(padded, term(logits[:3], jnp.ones(3)), rtol=1e-5)
    assert finite(functools.partial(term, weights=jnp.zeros(5)), {"logits": logits}) == 0


@pytest.mark.parametrize("term", [information_maximization, class_confusion, nuclear_norm])
@pytest.mark.parametrize("logits", [np.zeros((4, 3)), 1e4 * np.eye(5)[:, :4], np.ones((1, 2)),
                                    1e4 * np.eye(3)[[0, 0, 1, 1]]], ids=["equal", "sure", "single", "absent class"])
def test_degenerate_predictions_stay_finite(term, logits):
    finite(functools.partial(term, weights=jnp.ones(len(logits))), {"logits": logits})


def test_the_terms_differ_and_information_is_entropy_with_diversity():
    logits, ones = np.random.default_rng(2).normal(size=(6, 4)), jnp.ones(6)
    values = [float(term(logits, ones)) for term in (entropy, information_maximization, class_confusion, nuclear_norm)]
    assert len({round(value, 4) for value in values}) == 4
    assert values[1] == float(entropy(logits, ones, diversity=1.0))


def test_misfits_are_told():
    for term in (class_confusion, nuclear_norm):
        with pytest.raises(UserError, match="one prediction per example"):
            term(jnp.ones((2, 3, 3, 4)), jnp.ones(2))
    with pytest.raises(UserError, match="number > 0"):
        class_confusion(jnp.ones((2, 3)), jnp.ones(2), temperature=0.0)
