"""Terms in which predictions teach: pseudo labels, FixMatch, FlexMatch, mean teacher, self-ensembling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import fixmatch, flexmatch, pseudo_labels, self_ensembling, teacher_consistency
from transfer_jax.objectives.carried import CARRIED
from transfer_jax.objectives.self_training import class_leniency


def draw(rng, *names):
    batch, classes = rng.integers(1, 9), rng.integers(2, 6)
    return {name: rng.normal(0, 2, (batch, classes)) for name in names}, rng.integers(1, 4, batch)


def taught(x, constants, weights, threshold, divide_by, teaching, learning):
    above = below = 0.0
    for teacher, student, weight in zip(constants[teaching], x[learning], weights, strict=True):
        p = softmax(teacher)
        sure = p.max() >= threshold
        above += weight * sure * -np.log(softmax(student)[np.argmax(p)])
        below += weight * (sure if divide_by == "confident" else 1)
    return above / below if below else 0.0


def test_pseudo_labels_are_the_own_choices_where_they_are_sure():
    for seed in range(20):
        options = {"threshold": (0.0, 0.6, 0.9)[seed % 3], "divide_by": ("batch", "confident")[seed % 2]}
        arrays, weights = draw(np.random.default_rng(seed), "logits")
        agrees(functools.partial(pseudo_labels, weights=jnp.asarray(weights), **options),
               functools.partial(taught, weights=weights, teaching="logits", learning="logits", **options),
               arrays, seed)


def test_fixmatch_teaches_the_strong_view_with_the_weak_one():
    for seed in range(20):
        options = {"threshold": (0.0, 0.6, 0.9)[seed % 3], "divide_by": ("batch", "confident")[seed % 2]}
        arrays, weights = draw(np.random.default_rng(seed), "weak_logits", "strong_logits")
        agrees(functools.partial(fixmatch, strong_weights=jnp.asarray(weights), **options),
               functools.partial(taught, weights=weights, teaching="weak_logits", learning="strong_logits", **options),
               arrays, seed)


def flexible(x, constants, weights, given, threshold):
    """FlexMatch: the table's counts per class, and of those not given, by hand."""
    classes = x["weak_logits"].shape[1]
    counts = [np.sum(given == c) for c in range(classes)]
    share = np.array(counts) / max(*counts, np.sum(given == -1), 1)
    total = 0.0
    for teacher, student, weight in zip(constants["weak_logits"], x["strong_logits"], weights, strict=True):
        p = softmax(teacher)
        c = np.argmax(p)
        if p[c] >= threshold * share[c] / (2 - share[c]):
            total -= weight * np.log(softmax(student)[c])
    return total / weights.sum()


def test_flexmatch_lowers_the_threshold_of_classes_that_lag():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        arrays, weights = draw(rng, "weak_logits", "strong_logits")
        batch, classes = arrays["weak_logits"].shape
        given = rng.integers(-1, classes, 30)
        examples = rng.permutation(30)[:batch]
        agrees(lambda weak_logits, strong_logits, w=weights, e=examples, g=given: flexmatch(
            weak_logits, strong_logits, jnp.asarray(w), jnp.asarray(e), {"given": jnp.asarray(g, jnp.float32)},
            threshold=0.9),
            functools.partial(flexible, weights=weights, given=given, threshold=0.9), arrays, seed)


def test_the_table_of_flexmatch_remembers_sure_choices_of_these_examples_alone():
    weak = np.array([[9.0, 0, 0], [0, 9.0, 0], [1.0, 0, 0], [0, 0, 9.0]])
    carried = CARRIED["flexmatch"](size=6)
    assert carried["given"].dtype == jnp.float32 and carried["given"].shape == (6,)
    carried = {"given": carried["given"].at[2].set(1.0)}
    _, metrics, after = flexmatch(weak, weak, jnp.array([1.0, 1, 1, 0]), jnp.array([4, 0, 2, 5]), carried)
    np.testing.assert_array_equal(after["given"], [1, -1, 1, -1, 0, -1])
    assert metrics["confident"] == 1.0  # at the start every threshold is low: the paper's warm-up
    np.testing.assert_allclose(class_leniency(jnp.array([0.0, 0, 0, 0, 1, 1]), 3), [1, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(class_leniency(jnp.array([0.0, -1, -1, -1]), 2), [1 / 5, 0], rtol=1e-6)
    np.testing.assert_allclose(class_leniency(jnp.array([0.0, 0, 1, -1]), 2, warm_up=False), [1, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(class_leniency(jnp.full(4, -1.0), 2, warm_up=False), [1, 1])
    everyone = {"given": jnp.array([0.0, 1, 2, 0, 1, 2])}
    value = flexmatch(weak, weak, jnp.ones(4), jnp.arange(4), everyone)[0]
    np.testing.assert_allclose(value, fixmatch(weak, weak, jnp.ones(4))[0], rtol=1e-6)  # all learned alike


def test_consistency_with_the_teacher():
    def definition(x, constants, weights, distance):
        total = 0.0
        for student, teacher, weight in zip(x["strong_logits"], constants["weak_teacher_logits"], weights, strict=True):
            p, q = softmax(teacher), softmax(student)
            total += weight * (np.mean((p - q)**2) if distance == "squared" else np.sum(p * np.log(p / q)))
        return total / weights.sum()

    for seed in range(20):
        distance = ("squared", "divergence")[seed % 2]
        arrays, weights = draw(np.random.default_rng(seed), "strong_logits", "weak_teacher_logits")
        agrees(functools.partial(teacher_consistency, strong_weights=jnp.asarray(weights), distance=distance),
               functools.partial(definition, weights=weights, distance=distance), arrays, seed)


def test_self_ensembling_counts_sure_teachers_and_balances_classes():
    def definition(x, constants, weights, threshold, balance):
        students, teachers = softmax(x["strong_logits"]), softmax(constants["weak_teacher_logits"])
        share = weights / weights.sum()
        sure = np.array([p.max() >= threshold for p in teachers])
        loss = sum(s * w * np.mean((q - p)**2) for s, w, q, p in zip(sure, share, students, teachers, strict=True))
        classes = students.shape[1]
        mean = share @ students
        cross = -sum(np.log(m) / classes + (1 - 1 / classes) * np.log(1 - m) for m in mean)
        return loss + balance * np.sum(share * sure) * cross

    for seed in range(20):
        options = {"threshold": (0.0, 0.7)[seed % 2], "balance": (0.0, 0.5, 0.005)[seed % 3]}
        arrays, weights = draw(np.random.default_rng(seed), "strong_logits", "weak_teacher_logits")
        agrees(functools.partial(self_ensembling, strong_weights=jnp.asarray(weights), **options),
               functools.partial(definition, weights=weights, **options), arrays, seed)


def test_those_that_teach_have_no_gradient_and_those_that_learn_follow():
    rng = np.random.default_rng(0)
    weak, strong = jnp.asarray(rng.normal(0, 4, (2, 6, 4)), jnp.float32)
    ones, table = jnp.ones(6), {"given": jnp.full(6, -1.0)}
    for term in (functools.partial(fixmatch, threshold=0.0),
                 lambda a, b, w: flexmatch(a, b, w, jnp.arange(6), table),
                 lambda a, b, w: (teacher_consistency(b, a, w),),
                 functools.partial(lambda a, b, w: self_ensembling(b, a, w, threshold=0.0))):
        slopes = jax.grad(lambda a, b, term=term: term(a, b, ones)[0], (0, 1))(weak, strong)
        assert not np.any(slopes[0]) and np.any(slopes[1])
        assert term(weak, strong - slopes[1], ones)[0] < term(weak, strong, ones)[0]


@pytest.mark.parametrize("logits", [np.zeros((3, 4)), 1e4 * np.eye(4), np.ones((1, 2)), 1e4 * np.eye(3)[[0, 0]]],
                         ids=["equal", "sure", "single", "absent class"])
def test_degenerate_predictions_stay_finite_and_unsure_ones_teach_nothing(logits):
    ones = jnp.ones(len(logits))
    for threshold in (0.0, 1.0):
        for term in (functools.partial(fixmatch, strong_weights=ones, divide_by="confident"),
                     lambda weak_logits, strong_logits, threshold: pseudo_labels(
                         weak_logits + strong_logits, ones, threshold=threshold),
                     lambda weak_logits, strong_logits, threshold: self_ensembling(
                         strong_logits, weak_logits, ones, threshold=threshold)):
            value = finite(functools.partial(term, threshold=threshold),
                           {"weak_logits": logits, "strong_logits": logits})
            assert threshold == 0.0 or logits.max() > 1 or value == 0
    assert fixmatch(logits, logits, jnp.zeros(len(logits)))[0] == 0


def test_misfits_are_told():
    a, b, ones = jnp.ones((3, 4)), jnp.ones((2, 4)), jnp.ones(3)
    for call in (lambda: fixmatch(a, b, ones), lambda: teacher_consistency(a, b, ones),
                 lambda: self_ensembling(a, b, ones)):
        with pytest.raises(UserError, match="same examples"):
            call()
    with pytest.raises(UserError, match="from 0 to 1"):
        fixmatch(a, a, ones, threshold=95)
    with pytest.raises(UserError, match="'batch' or 'confident'"):
        pseudo_labels(a, ones, divide_by="mask")
    with pytest.raises(UserError, match="'squared' or 'divergence'"):
        teacher_consistency(a, a, ones, distance="l2")
