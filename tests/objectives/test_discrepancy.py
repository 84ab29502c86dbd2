"""Two classifiers that disagree: MCD and MDD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import classifier_discrepancy, margin_disparity, sliced_discrepancy


def test_classifier_discrepancy_is_the_difference_of_probabilities():
    for seed in range(20):
        rng, reduction = np.random.default_rng(seed), ("mean", "sum")[seed % 2]
        batch, classes = rng.integers(1, 9), rng.integers(2, 7)
        arrays = {name: rng.normal(size=(batch, classes)) for name in ("task_logits", "logits")}
        weights = rng.integers(1, 4, batch)

        def definition(x, _, weights=weights, classes=classes, reduction=reduction):
            total = 0.0
            for first, second, weight in zip(x["task_logits"], x["logits"], weights, strict=True):
                total += weight * sum(abs(a - b) for a, b in zip(softmax(first), softmax(second), strict=True))
            return total / weights.sum() / (classes if reduction == "mean" else 1)

        agrees(functools.partial(classifier_discrepancy, weights=jnp.asarray(weights), reduction=reduction),
               definition, arrays, seed)


def test_equal_heads_have_no_discrepancy_and_the_signs_set_heads_and_encoder_against_each_other():
    rng = np.random.default_rng(0)
    features, heads = jnp.asarray(rng.normal(size=(9, 4))), jnp.asarray(rng.normal(size=(2, 4, 3)))
    ones = jnp.ones(9)
    assert classifier_discrepancy(features @ heads[0], features @ heads[0], ones) == 0
    assert finite(lambda a, b: classifier_discrepancy(a, b, ones), {"a": np.zeros((9, 3)), "b": np.zeros((9, 3))}) == 0

    def loss(features, heads):
        return classifier_discrepancy(features @ heads[0], features @ heads[1], ones)

    start, slopes = loss(features, heads), jax.grad(loss, (0, 1))(features, heads)
    assert loss(features - 0.1 * slopes[0], heads) < start  # update C
    assert loss(features, heads + 0.1 * slopes[1]) > start  # update B, weight = -1


def test_sliced_discrepancy_compares_sorted_projections():
    for seed in range(20):
        rng, key = np.random.default_rng(seed), jax.random.key(seed)
        batch, classes, projections = rng.integers(1, 7), rng.integers(2, 6), int(rng.integers(1, 5))
        arrays = {name: rng.normal(size=(batch, classes)) for name in ("task_logits", "logits")}
        directions = np.asarray(jax.random.normal(key, (classes, projections)), np.float64)

        def definition(x, _, directions=directions, batch=batch, projections=projections):
            total = 0.0
            for direction in directions.T / np.linalg.norm(directions, axis=0)[:, None]:
                first, second = (sorted(softmax(row) @ direction for row in x[name]) for name in x)
                total += sum((a - b)**2 for a, b in zip(first, second, strict=True))
            return total / batch / projections

        agrees(functools.partial(sliced_discrepancy, key=key, projections=projections), definition, arrays, seed)


def test_sliced_discrepancy_sees_distributions_and_not_examples():
    rng, key = np.random.default_rng(0), jax.random.key(0)
    logits = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
    mixed, other = logits[rng.permutation(9)], jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
    assert sliced_discrepancy(logits, mixed, key) < 1e-12 < classifier_discrepancy(logits, mixed, jnp.ones(9))
    np.testing.assert_allclose(sliced_discrepancy(logits, other, key), sliced_discrepancy(mixed, other, key), rtol=1e-5)
    # The mean over all directions of a squared projection is the squared length over the dimension.
    first, second = jax.nn.softmax(logits[:1]), jax.nn.softmax(other[:1])
    many = sliced_discrepancy(logits[:1], other[:1], key, projections=20000)
    np.testing.assert_allclose(many, jnp.sum(jnp.square(first - second)) / 4, rtol=0.05)


def test_padding_counts_for_nothing():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 5, 3))
    padded = classifier_discrepancy(first, second, jnp.array([1.0, 1, 1, 0, 0]))
    np.testing.assert_allclose(padded, classifier_discrepancy(first[:3], second[:3], jnp.ones(3)), rtol=1e-6)


FOUR = ("source_features", "source_task_logits", "target_features", "target_task_logits")


def draw(rng):
    length, classes = rng.integers(1, 6), rng.integers(2, 6)
    shapes = [(rows, columns) for rows in rng.integers(1, 9, 2) for columns in (length, classes)]
    return {name: rng.normal(size=shape) for name, shape in zip(FOUR, shapes, strict=True)} | {
        "adversary": rng.normal(size=(length, classes))}


def disparity(x, constants, margin):
    total = 0.0
    for domain in ("source", "target"):
        for features, scores in zip(x[f"{domain}_features"], constants[f"{domain}_task_logits"], strict=True):
            q = softmax(features @ x["adversary"])[np.argmax(scores)]
            loss = -margin * np.log(q) if domain == "source" else -np.log(1 - q)
            total += loss / len(x[f"{domain}_features"])
    return total


def test_margin_disparity_is_its_definition_with_the_features_reversed():
    for seed in range(20):
        margin = (1.0, 4.0)[seed % 2]

        def term(adversary, margin=margin, **x):
            return margin_disparity(*(x[name] for name in FOUR), lambda h: h @ adversary, jnp.asarray(0.3),
                                    margin=margin, schedule="constant", max_scale=1.0)

        def slope_of(x, constants, margin=margin):
            plain = disparity({**constants, "adversary": x["adversary"]}, constants, margin)
            return plain - disparity({**x, "adversary": constants["adversary"]}, constants, margin)

        agrees(term, functools.partial(disparity, margin=margin), draw(np.random.default_rng(seed)), seed,
               slope_of=slope_of)


def test_the_adversary_descends_and_the_features_ascend():
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in draw(np.random.default_rng(7)).items()}

    def loss(x):
        return margin_disparity(*(x[name] for name in FOUR), lambda h: h @ x["adversary"], jnp.ones(()))[0]

    slopes = jax.grad(loss)(arrays)
    for name, sign in (("adversary", -1), ("target_features", 1), ("source_features", 1)):
        assert sign * (loss({**arrays, name: arrays[name] - 0.01 * slopes[name]}) - loss(arrays)) > 0
    assert not np.any(slopes["source_task_logits"]) and not np.any(slopes["target_task_logits"])


@pytest.mark.parametrize("classes", [2, 5])
def test_extreme_scores_keep_value_and_slope_finite(classes):
    scores = np.eye(classes)[:1]
    for size in (1e2, 1e4):
        def term(h, size=size):
            return margin_disparity(h, scores, h, scores, lambda x: size * x, jnp.ones(()))
        expected = size - np.log(classes - 1)  # the target's: q is 1 to all digits
        np.testing.assert_allclose(finite(term, {"h": scores}), expected, rtol=1e-4)


def test_misfits_are_one_clear_sentence():
    with pytest.raises(UserError, match="as many outputs"):
        classifier_discrepancy(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(2))
    with pytest.raises(UserError, match="as many outputs"):
        sliced_discrepancy(jnp.ones((2, 3)), jnp.ones((2, 4)), jax.random.key(0))
    with pytest.raises(UserError, match="projections = 0"):
        sliced_discrepancy(jnp.ones((2, 3)), jnp.ones((2, 3)), jax.random.key(0), projections=0)
    with pytest.raises(UserError, match="'mean' or 'sum'"):
        classifier_discrepancy(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(2), reduction="max")
    with pytest.raises(UserError, match="outputs of the classifier"):
        margin_disparity(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones((2, 3)), jnp.ones((2, 4)), lambda x: x,
                         jnp.ones(()))
