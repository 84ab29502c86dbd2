"""Statistics of the start and the terms that use them, against sums over examples in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression

from transfer_jax.core.errors import UserError
from transfer_jax.objectives import co_tuning, delta, ewc, features_to_start
from transfer_jax.objectives.spec import TermSpec
from transfer_jax.objectives.statistics import (
    PENALTIES,
    STATISTICS,
    StartView,
    channel_weights,
    fisher,
    relationship,
)
from transfer_jax.objectives.wiring import make_term
from transfer_jax.tasks import TaskSpec

RNG = np.random.default_rng(5)
X, W, V = RNG.normal(size=(9, 4)), RNG.normal(size=(4, 3)), RNG.normal(size=(3, 3))
LABELS = np.array([0, 1, 2, 2, 1, 0, 0, 2, 1])
WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0.0])  # the last two are padding


def view(kind="classification", classes=3):
    """z = tanh(x W) V, whose hidden layer is the tap."""
    params = {"w": jnp.asarray(W, jnp.float32), "v": jnp.asarray(V[:, :1] if kind == "binary" else V, jnp.float32)}

    def hidden(batch, own):
        return jnp.tanh(batch["x"] @ own["w"])

    def logits(batch, parameters=params, edits=None):
        tap = hidden(batch, parameters)
        return (edits["tap"](tap) if edits else tap) @ parameters["v"]

    def loss(z, batch):
        values = -jnp.take_along_axis(jax.nn.log_softmax(z), batch["label"][:, None], 1)[:, 0]
        return (values * batch["weight"]).sum() / batch["weight"].sum()

    return StartView(params, logits, lambda batch: hidden(batch, params), lambda batch: batch["label"], loss, kind,
                     classes, "tap")


def measured(statistic, own, labels=LABELS):
    """The statistic over two batches, the second one padded."""
    batches = [{"x": jnp.asarray(X[rows], jnp.float32), "label": jnp.asarray(labels[rows], jnp.int32),
                "weight": jnp.asarray(WEIGHTS[rows], jnp.float32)} for rows in (slice(0, 5), slice(5, 9))]
    sums = [statistic.measure(own, batch) for batch in batches]
    return statistic.finish(jax.tree.map(jnp.add, *sums))


def gradients(x, direction, v):
    """Gradients of direction . z for one example, by hand, float64."""
    h = np.tanh(x @ W)
    return {"w": np.outer(x, (v @ direction) * (1 - h * h)), "v": np.outer(h, direction)}


def brute_force(kind, empirical, labels=LABELS):
    total = {"w": 0, "v": 0}
    v = V[:, :1] if kind == "binary" else V
    for x, y in zip(X[:7], labels[:7], strict=True):
        z = np.tanh(x @ W) @ v
        if kind == "classification":
            p = scipy.special.softmax(z)
            outcomes = [(p[k], np.eye(3)[k] - p) for k in range(3)]
            outcomes = [(1, outcomes[y][1])] if empirical else outcomes
        elif kind == "binary":
            p = scipy.special.expit(z)
            outcomes = [(1, y - p)] if empirical else [(p[0], 1 - p), (1 - p[0], -p)]
        elif kind == "multi_label":  # every set of labels by itself; one that is not known says nothing
            p = scipy.special.expit(z)
            outcomes = [(1, np.where(y < 0, 0, y - p))] if empirical else [
                (np.prod(np.where(bits, p, 1 - p)), np.array(bits) - p) for bits in itertools.product((0, 1), repeat=3)]
        else:
            outcomes = [(1, y - z)] if empirical else [(1, e) for e in np.eye(3)]
        for weight, direction in outcomes:
            found = gradients(x, direction, v)
            total = {name: total[name] + weight * found[name] ** 2 for name in total}
    return {name: value / 7 for name, value in total.items()}


@pytest.mark.parametrize("empirical", [False, True])
@pytest.mark.parametrize("kind", ["classification", "binary", "multi_label", "regression"])
def test_fisher_is_the_mean_of_squared_gradients_of_every_example(kind, empirical):
    labels = {"classification": LABELS, "binary": LABELS % 2, "regression": np.repeat(LABELS[:, None], 3, 1),
              "multi_label": (LABELS[:, None] + np.arange(3)) % 3 - 1}[kind]
    found = measured(fisher(empirical=empirical), view(kind), labels)
    for name, expected in brute_force(kind, empirical, labels).items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6)


def test_the_two_kinds_of_fisher_differ_and_maps_are_refused():
    exact, empirical = (measured(fisher(empirical=flag), view()) for flag in (False, True))
    assert np.abs(exact["v"] - empirical["v"]).max() > 1e-2
    with pytest.raises(UserError, match="one prediction per example"):
        measured(fisher(), view("segmentation"))


def test_ewc_pulls_back_by_the_information():
    now, then, information = ({"a": jnp.asarray(RNG.normal(size=(3, 2)) ** power, jnp.float32),
                               "heads/x": jnp.ones(2)} for power in (1, 1, 2))
    value, gradient = jax.value_and_grad(lambda p: ewc(p, then, information, strength=3.0))(now)
    difference = np.asarray(now["a"] - then["a"], np.float64)
    np.testing.assert_allclose(value, 1.5 * (information["a"] * difference ** 2).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient["a"], 3 * information["a"] * difference, rtol=1e-5)
    assert not gradient["heads/x"].any()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_relationship_is_the_class_mean_of_source_predictions(temperature):
    found = np.asarray(measured(relationship(temperature=temperature), view(classes=4)))
    p = scipy.special.softmax(np.tanh(X @ W) @ V / temperature, axis=1)
    for label in range(3):
        np.testing.assert_allclose(found[label], p[:7][LABELS[:7] == label].mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[3], np.full(3, 1 / 3))  # no example of this class
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_co_tuning_is_the_cross_entropy_with_the_row_of_the_label():
    logits, rows = RNG.normal(size=(9, 3)), scipy.special.softmax(RNG.normal(size=(3, 3)), axis=1)
    losses = -(rows[LABELS] * scipy.special.log_softmax(logits, axis=1)).sum(1)
    given = [jnp.asarray(array, jnp.float32) for array in (logits, WEIGHTS, rows)]
    found = co_tuning(given[0], jnp.asarray(LABELS), None, *given[1:])
    np.testing.assert_allclose(found, np.average(losses, weights=WEIGHTS), rtol=1e-5)
    mixed = scipy.special.softmax(RNG.normal(size=(9, 3)), axis=1)
    losses = -(mixed @ rows * scipy.special.log_softmax(logits, axis=1)).sum(1)
    np.testing.assert_allclose(co_tuning(given[0], jnp.asarray(LABELS), jnp.asarray(mixed), *given[1:]),
                               np.average(losses, weights=WEIGHTS), rtol=1e-5)
    assert np.isnan(co_tuning(given[0], jnp.asarray(LABELS - 1), None, *given[1:]))
    assert np.isnan(measured(relationship(), view(), LABELS - 1)).any()


def many(classes=3, rows=90, seed=2):
    """Source logits [n, 4] and target labels that go with them, and their probabilities."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(rows, 4))
    labels = np.where(rng.random(rows) < 0.8, z.argmax(1) % classes, rng.integers(classes, size=rows))
    return z, labels, scipy.special.softmax(z, axis=1)


def reverse_way(p, labels, classes, kept, penalties):
    """The definition in float64: (held-out log-likelihood of each penalty, relationship for each penalty)."""
    def fitted(rows, penalty):
        model = LogisticRegression(C=1 / (penalty * len(rows)), solver="newton-cholesky", tol=1e-12, max_iter=1000)
        return model.fit(p[rows], labels[rows])

    scores, relations = [], []
    for penalty in penalties:
        parts = [(kept[kept % 5 != fold], kept[kept % 5 == fold]) for fold in range(5)]
        scores.append(sum(fitted(fit, penalty).predict_log_proba(p[held])[np.arange(len(held)), labels[held]].sum()
                          for fit, held in parts))
        joint = fitted(kept, penalty).predict_proba(np.eye(4)) * p[kept].mean(0)[:, None]  # [source, target]
        relations.append((joint / joint.sum(0)).T)
    return scores, relations


def test_the_reverse_way_is_bayes_rule_on_a_regression_of_the_target_class():
    _, labels, p = many()
    weights = np.ones(len(p))
    weights[[7, 50]] = 0  # could not be read
    scores, relations = reverse_way(p, labels, 3, np.flatnonzero(weights), PENALTIES)
    assert np.argmax(scores) not in (0, len(PENALTIES) - 1), "the choice matters"
    statistic = relationship(reverse=True)
    assert statistic.each and not relationship().each
    found = np.asarray(statistic.finish(
        (jnp.asarray(p, jnp.float32), jax.nn.one_hot(labels, 4)), jnp.asarray(weights, jnp.float32)))
    np.testing.assert_allclose(found[:3], relations[np.argmax(scores)], atol=2e-4)
    np.testing.assert_allclose(found[3], np.full(4, 0.25))  # no example of this class
    direct = np.stack([p[(labels == c) & (weights > 0)].mean(0) for c in range(3)])
    assert np.abs(found[:3] - direct).max() > 0.02, "the two ways differ"
    wrong = jax.nn.one_hot(labels, 4).at[3].set(jnp.nan)  # a label that is no class
    assert np.isnan(statistic.finish((jnp.asarray(p, jnp.float32), wrong), jnp.asarray(weights))).any()


def test_what_says_the_temperature_twice_is_refused():
    with pytest.raises(UserError, match="leave one out"):
        relationship(temperature=2.0, calibrated_on="held")
    with pytest.raises(UserError, match="a number from 0 to 1"):
        fisher(decay=1.5)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_channels_weigh_by_the_loss_without_them(temperature):
    hidden = np.tanh(X[:7] @ W)

    def loss(hidden):
        return -scipy.special.log_softmax(hidden @ V, axis=1)[np.arange(7), LABELS[:7]].mean()

    rises = [loss(hidden * (np.arange(3) != c)) - loss(hidden) for c in range(3)]
    found = measured(channel_weights(temperature=temperature), view())
    np.testing.assert_allclose(found, 3 * scipy.special.softmax(np.divide(rises, temperature)), rtol=1e-4)
    np.testing.assert_allclose(np.mean(found), 1, rtol=1e-6)


def test_delta_with_equal_attention_is_the_plain_feature_distance():
    now, then = (jnp.asarray(RNG.normal(size=(9, 2, 2, 3)), jnp.float32) for _ in range(2))
    weights = jnp.asarray(WEIGHTS)
    assert delta(now, then, weights, jnp.ones(3), alpha=0.3) == features_to_start(now, then, weights, alpha=0.3)
    attention = np.array([2.0, 0.7, 0.3])
    squared = np.square(np.asarray(now - then, np.float64)).mean((1, 2))
    np.testing.assert_allclose(delta(now, then, weights, jnp.asarray(attention)),
                               0.005 * np.average(squared @ attention, weights=WEIGHTS), rtol=1e-5)


TASKS = {"digits": TaskSpec(kind="classification", head="new")}


def test_options_of_a_statistic_are_options_of_its_term():
    spec = TermSpec(kind="ewc", measured_on="old", head="h", empirical=True, strength=2.0)
    term = make_term("keep", spec, TASKS, "config")
    assert set(term.statistics) == {"fisher"} and term.needs_start
    assert set(STATISTICS) == {"fisher", "relationship", "channel_weights", "cluster_labels"}


@pytest.mark.parametrize(("arguments", "words"), [
    ({"kind": "ewc", "head": "h"}, "set measured_on"),
    ({"kind": "ewc", "measured_on": "old"}, "set head"),
    ({"kind": "co_tuning", "head": "h", "stream": "new"}, "set task"),
    ({"kind": "ewc", "head": "h", "measured_on": "old", "strenght": 1.0}, "did you mean 'strength'"),
])
def test_what_cannot_be_measured_is_named(arguments, words):
    with pytest.raises(UserError, match=words):
        make_term("keep", TermSpec(**arguments), TASKS, "config.stages.tune.objective.keep")
