"""Ordinal regression: the loss against loops, ranks that do not contradict each other, agreement by scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.evaluation import METRICS
from transfer_jax.tasks import TaskSpec, head_outputs
from transfer_jax.tasks.metric import accumulate
from transfer_jax.tasks.ordinal import conditional_ordinal, predict_rank

CLASSES = 5


def drawn(seed, count=37):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, CLASSES - 1)).astype(np.float32),
            generator.integers(0, CLASSES, count).astype(np.int32), generator.uniform(0, 2, count).astype(np.float32))


@pytest.mark.parametrize("seed", range(20))
def test_the_loss_is_the_mean_over_examples_and_the_thresholds_that_they_are_asked(seed):
    logits, labels, weights = drawn(seed)
    weights[:5] = 0
    total, mass = 0.0, 0.0
    for row, label, weight in zip(logits.astype(np.float64), labels, weights.astype(np.float64), strict=True):
        for k, logit in enumerate(row):
            if label > k - 1:
                p = 1 / (1 + np.exp(-logit))
                total -= weight * np.log(p if label > k else 1 - p)
                mass += weight
    np.testing.assert_allclose(conditional_ordinal(logits, labels, weights), total / mass, rtol=1e-5)


def test_gradients_of_thresholds_that_are_not_asked_are_zero():
    logits, labels, weights = drawn(0)
    gradient = np.asarray(jax.grad(conditional_ordinal)(logits, labels, weights))
    asked = labels[:, None] >= np.arange(CLASSES - 1)
    assert ((gradient != 0) == asked).all()
    step = 1e-2
    row, column = np.argwhere(asked)[3]
    ends = [float(conditional_ordinal(jnp.asarray(logits).at[row, column].add(sign * step), labels, weights))
            for sign in (1, -1)]
    np.testing.assert_allclose(gradient[row, column], (ends[0] - ends[1]) / (2 * step), rtol=2e-2)


def test_probabilities_are_those_of_one_distribution_and_the_rank_is_its_median():
    found = predict_rank(drawn(1, 500)[0])
    p = np.asarray(found["probabilities"], np.float64)
    assert p.min() >= 0 and found["prediction"].dtype == jnp.int32
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    median = (p.cumsum(1) < 0.5 - 1e-6).sum(1)
    np.testing.assert_array_equal(found["prediction"], median)
    np.testing.assert_allclose(found["confidence"], p[np.arange(500), median], rtol=1e-5)


def test_a_label_beyond_the_thresholds_is_not_taken_for_another():
    logits, labels, weights = drawn(2)
    assert np.isnan(conditional_ordinal(logits, np.where(np.arange(37) == 3, CLASSES, labels), weights))
    assert np.isfinite(conditional_ordinal(logits, np.where(np.arange(37) == 3, CLASSES, labels),
                                           np.where(np.arange(37) == 3, 0, weights)))


def test_agreement_is_that_of_scikit_learn_over_ragged_batches():
    logits, labels, _ = drawn(3, 300)
    metric, total = METRICS["ranks"], None
    for start in range(0, 300, 128):
        part = np.minimum(np.arange(start, start + 128), 299)
        batch = {"label": labels[part], "weight": (np.arange(start, start + 128) < 300).astype(np.float32)}
        total = accumulate(total, metric.update(metric.init(CLASSES - 1), logits[part], batch))
    found, answers = metric.compute(total), np.asarray(predict_rank(logits)["prediction"])
    np.testing.assert_allclose(found["quadratic_kappa"], cohen_kappa_score(labels, answers, weights="quadratic"))
    np.testing.assert_allclose(found["mean_rank_error"], np.abs(labels - answers).mean())
    np.testing.assert_allclose(found["rank_accuracy"], (labels == answers).mean())
    assert np.isnan(metric.compute(accumulate(None, metric.init(CLASSES - 1)))["quadratic_kappa"])


def test_an_order_needs_three_classes():
    spec = build(TaskSpec, {"kind": "ordinal", "head": "grade"})
    assert head_outputs(spec, tuple("abcd")) == 3
    with pytest.raises(UserError, match="at least 3 classes in their order"):
        head_outputs(spec, tuple("ab"))
