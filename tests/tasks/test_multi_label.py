"""Several classes an example: loss against a loop, scores against scikit-learn, what is not known counts nowhere."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.evaluation import METRICS
from transfer_jax.tasks import TaskSpec, head_outputs, predict
from transfer_jax.tasks.metric import accumulate
from transfer_jax.tasks.multi_label import average_precision, mean_cross_entropy, multi_label_cross_entropy

CLASSES = 5
TASK = build(TaskSpec, {"kind": "multi_label", "head": "tags"})


def drawn(seed, count=60, unknown=0.0):
    """Logits rounded so that some are equal, labels (class 3 has no positive), weights with some zeros."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, CLASSES)).round(1).astype(np.float32)
    labels = (generator.uniform(size=(count, CLASSES)) < 0.3).astype(np.int32)
    labels[:, 3] = 0
    labels[generator.uniform(size=labels.shape) < unknown] = -1
    weights = generator.uniform(0, 2, count).astype(np.float32)
    weights[:3] = 0
    return logits, labels, weights


@pytest.mark.parametrize("positive", [1.0, 2.5, (0.0, 1.0, 2.0, 3.0, 4.0)])
def test_the_loss_is_the_mean_over_known_labels(positive):
    logits, labels, weights = drawn(0, unknown=0.4)
    costs = np.broadcast_to(positive, CLASSES)
    total = mass = 0.0
    for z, t, weight in zip(logits.astype(np.float64), labels, weights.astype(np.float64), strict=True):
        for k in range(CLASSES):
            if t[k] >= 0:
                p = 1 / (1 + np.exp(-z[k]))
                total -= weight * (costs[k] * np.log(p) if t[k] else np.log(1 - p))
                mass += weight
    found = multi_label_cross_entropy(logits, labels, weights, positive_weights=positive)
    np.testing.assert_allclose(found, total / mass, rtol=1e-5)


def test_unknown_labels_have_no_gradient_and_great_logits_are_finite():
    logits, labels, _ = drawn(1, unknown=0.5)
    gradient = np.asarray(jax.grad(multi_label_cross_entropy)(jnp.asarray(logits) * 1e4, labels, jnp.ones(60)))
    assert np.isfinite(gradient).all() and not gradient[labels < 0].any()
    assert float(multi_label_cross_entropy(logits, np.full_like(labels, -1), jnp.ones(60))) == 0


def measured(name, logits, labels, size=16):
    """The metric over ragged batches padded with rows that must not count."""
    metric, total, rows = METRICS[name], None, []
    for start in range(0, len(logits), size):
        place = np.minimum(np.arange(start, start + size), len(logits) - 1)
        real = (np.arange(start, start + size) < len(logits)).astype(np.float32)
        batch = {"label": jnp.asarray(labels[place]), "weight": jnp.asarray(real)}
        if hasattr(metric, "rows"):
            rows.append({key: np.asarray(value)[real > 0] for key, value in metric.rows(logits[place], batch).items()})
        else:
            total = accumulate(total, metric.update(metric.init(CLASSES), jnp.asarray(logits[place]), batch))
    joined = {key: np.concatenate([part[key] for part in rows]) for key in rows[0]} if rows else total
    return metric.compute(joined)


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_scores_are_those_of_scikit_learn(unknown):
    logits, labels, _ = drawn(2, 90, unknown)
    answers, known = logits >= 0, labels >= 0
    found = measured("macro_average_precision", logits, labels)
    columns = [k for k in range(CLASSES) if k != 3]
    expected = [average_precision_score(labels[known[:, k], k], logits[known[:, k], k]) for k in columns]
    np.testing.assert_allclose(found["per_class_average_precision"][columns], expected, rtol=1e-12)
    np.testing.assert_allclose(found["macro_average_precision"], np.mean(expected), rtol=1e-12)
    assert np.isnan(found["per_class_average_precision"][3])
    scores = measured("multi_label_f1", logits, labels)
    each = [f1_score(labels[known[:, k], k], answers[known[:, k], k]) for k in range(CLASSES)]
    np.testing.assert_allclose(scores["per_class_f1"], each, rtol=1e-12)  # class 3 was answered: 0, not left out
    np.testing.assert_allclose(scores["macro_f1"], np.mean(each), rtol=1e-12)
    np.testing.assert_allclose(scores["micro_f1"], f1_score(labels[known], answers[known]), rtol=1e-12)
    np.testing.assert_allclose(scores["exact_match"], ((answers == labels) | ~known).all(1).mean(), rtol=1e-12)


def test_a_class_that_neither_truth_nor_answers_have_is_left_out():
    logits, labels, _ = drawn(3)
    logits[:, 3] = -1
    scores = measured("multi_label_f1", logits, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = f1_score(labels, logits >= 0, average=None, zero_division=np.nan)
    assert np.isnan(scores["per_class_f1"][3])
    np.testing.assert_allclose(scores["macro_f1"], np.nanmean(expected), rtol=1e-12)
    np.testing.assert_allclose(scores["micro_f1"], f1_score(labels, logits >= 0, average="micro"), rtol=1e-12)


def test_equal_scores_earn_no_more_than_the_share_of_positives():
    assert average_precision(np.zeros(8), np.arange(8) < 2) == 0.25
    assert np.isnan(average_precision(np.zeros(8), np.zeros(8, bool)))


def test_answers_and_the_error_of_an_example():
    logits, labels, _ = drawn(4, unknown=0.4)
    found = predict(TASK, logits)
    np.testing.assert_array_equal(found["prediction"], logits >= 0)
    np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-logits)), rtol=1e-6)
    one = np.array([multi_label_cross_entropy(logits[[i]], labels[[i]], np.ones(1)) for i in range(len(logits))])
    np.testing.assert_allclose(mean_cross_entropy(logits, labels), one, rtol=1e-5)


def test_what_does_not_fit_is_told():
    logits, labels, weights = drawn(5)
    with pytest.raises(UserError, match="one for each of 5 classes"):
        multi_label_cross_entropy(logits, labels, weights, positive_weights=(1.0, 2.0))
    with pytest.raises(UserError, match="outputs and labels"):
        multi_label_cross_entropy(logits, labels[:, 0], weights)
    assert head_outputs(TASK, ("cat",)) == 1
    with pytest.raises(UserError, match="targets=\\('labels',\\)"):
        head_outputs(TASK)
