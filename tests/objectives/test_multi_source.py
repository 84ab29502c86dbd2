"""MDAN: several sources against one target."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import multi_source_adversarial

COUNT = 3


def draw(rng):
    source, target, length, classes = rng.integers(1, 9), rng.integers(1, 6), rng.integers(1, 5), rng.integers(2, 5)
    moving = {"source_features": rng.normal(size=(source, length)), "target_features": rng.normal(
        size=(target, length)), "logits": rng.normal(size=(source, classes)), "critic": rng.normal(
        size=(length, COUNT))}
    weights = rng.integers(0, 3, source).astype(np.float32)
    weights[0] = 1
    return moving, {"labels": rng.integers(0, classes, source), "weights": weights,
                    "domains": rng.integers(0, COUNT, source)}


def term(source_features, target_features, logits, critic, *, fixed, sharpness, mu=0.4):
    return multi_source_adversarial(
        source_features, logits, fixed["labels"], jnp.asarray(fixed["weights"]), jnp.asarray(fixed["domains"]),
        target_features, lambda x: x @ critic, jnp.asarray(0.3), count=COUNT, sharpness=sharpness, mu=mu,
        schedule="constant", max_scale=1.0)


def totals(x, features, fixed, mu):
    """Of each source that is there, by loops; `features`: what the critic sees."""
    found = []
    for domain in range(COUNT):
        rows = [i for i in range(len(fixed["labels"])) if fixed["domains"][i] == domain and fixed["weights"][i] > 0]
        if not rows:
            continue
        weights = fixed["weights"][rows]
        risk = np.average([-np.log(softmax(x["logits"][i])[fixed["labels"][i]]) for i in rows], weights=weights)
        column = x["critic"][:, domain]
        source = np.average([np.log1p(np.exp(-features["source_features"][i] @ column)) for i in rows],
                            weights=weights)
        target = np.mean([np.log1p(np.exp(row @ column)) for row in features["target_features"]])
        found.append(risk + mu * (source + target) / 2)
    return np.array(found)


def test_it_is_its_definition_with_the_features_reversed():
    def definition(x, _, fixed, sharpness):
        values = totals(x, x, fixed, 0.4)
        return values.max() if sharpness is None else np.log(np.exp(sharpness * values).sum()) / sharpness

    def reversed_features(x, constants, **options):
        """Reversal changes the sign of what moves, to first order: the features go the other way."""
        mirrored = {name: 2 * constants[name] - x[name] for name in ("source_features", "target_features")}
        return definition({**x, **mirrored}, constants, **options)

    for seed in range(20):
        moving, fixed = draw(np.random.default_rng(seed))
        options = {"fixed": fixed, "sharpness": (10.0, 0.5, None)[seed % 3]}
        agrees(functools.partial(term, **options), functools.partial(definition, **options), moving, seed,
               slope_of=functools.partial(reversed_features, **options))


def test_the_worst_source_counts_most_and_the_soft_form_tends_to_the_hard_one():
    moving, fixed = draw(np.random.default_rng(4))
    moving = {name: jnp.asarray(x, jnp.float32) for name, x in moving.items()}
    hard = term(**moving, fixed=fixed, sharpness=None)[0]
    soft = [term(**moving, fixed=fixed, sharpness=s)[0] for s in (1.0, 10.0, 1000.0)]
    assert soft[0] > soft[1] > soft[2] >= hard - 1e-5
    np.testing.assert_allclose(soft[2], hard, atol=2e-3)


def test_without_weight_and_with_extreme_scores_all_stays_finite():
    moving, fixed = draw(np.random.default_rng(5))
    for sharpness in (10.0, None):
        empty = {**fixed, "weights": np.zeros_like(fixed["weights"])}
        finite(functools.partial(term, fixed=empty, sharpness=sharpness), moving)
        finite(functools.partial(term, fixed=fixed, sharpness=sharpness), {k: 1e4 * x for k, x in moving.items()})


def test_misfits_are_one_clear_sentence():
    moving, fixed = draw(np.random.default_rng(6))
    with pytest.raises(UserError, match="outputs=3"):
        term(**{**moving, "critic": moving["critic"][:, :1]}, fixed=fixed, sharpness=1.0)
    with pytest.raises(UserError, match="sharpness = 0"):
        term(**moving, fixed=fixed, sharpness=0)
    with pytest.raises(UserError, match="the examples of its stream have none"):
        multi_source_adversarial(moving["source_features"], moving["logits"], fixed["labels"], fixed["weights"], None,
                                 moving["target_features"], lambda x: x, jax.numpy.asarray(0.0), count=COUNT)
