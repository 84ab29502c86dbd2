"""Boundary detection: maps of borders pixel by pixel, the loss of HED, scores beside scikit-learn and a count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.evaluation import METRICS
from transfer_jax.tasks import TaskSpec, example_error, head_outputs, metric_batch, predict
from transfer_jax.tasks.boundary_detection import BINS, balanced_cross_entropy, boundary_map
from transfer_jax.tasks.metric import accumulate

TASK = build(TaskSpec, dict(kind="boundary_detection", head="border"))


def masks(seed, count=4, side=12, void=0.05):
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 3, (count, side // 3, side // 3)).repeat(3, 1).repeat(3, 2)
    return np.where(rng.uniform(size=found.shape) < void, 255, found)


def pixel(mask, i, j):
    """1, 0 or 255, looked up neighbour by neighbour."""
    height, width = mask.shape
    around = [int(mask[a, b]) for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
              if 0 <= a < height and 0 <= b < width]
    if mask[i, j] == 255:
        return 255
    if any(other not in (255, mask[i, j]) for other in around):
        return 1
    return 255 if 255 in around else 0


def test_borders_are_where_a_neighbour_has_another_class():
    found = masks(0)
    expected = [[[pixel(mask, i, j) for j in range(12)] for i in range(12)] for mask in found]
    np.testing.assert_array_equal(boundary_map(jnp.asarray(found)), expected)
    assert set(np.unique(expected)) == {0, 1, 255}


def test_the_loss_is_that_of_hed_over_the_balance():
    rng = np.random.default_rng(1)
    labels = np.array(boundary_map(jnp.asarray(masks(1, void=0.02))))
    logits = rng.normal(size=(*labels.shape, 1)).astype(np.float32)
    weights = np.array([1, 0, 2, 1], np.float32)
    expected = []
    for z, y in zip(logits[..., 0].astype(np.float64), labels, strict=True):
        positive, negative = z[y == 1], z[y == 0]
        beta = len(negative) / (len(negative) + len(positive))
        hed = beta * np.log1p(np.exp(-positive)).sum() + (1 - beta) * np.log1p(np.exp(negative)).sum()
        expected.append(hed / (2 * beta * len(positive)))  # |Y+| |Y-| / |Y| = beta |Y+|
    np.testing.assert_allclose(example_error(TASK, logits, labels), expected, rtol=1e-5)
    value, slope = jax.jit(jax.value_and_grad(balanced_cross_entropy))(logits, labels, weights)
    np.testing.assert_allclose(value, np.average(expected, weights=weights), rtol=1e-5)
    slope = np.asarray(slope)
    assert (slope[..., 0][labels == 255] == 0).all() and (slope[[0, 2, 3]][..., 0][labels[[0, 2, 3]] == 1] < 0).all()


def test_images_without_a_class_or_without_labels():
    logits = jnp.full((3, 2, 2, 1), 0.7)
    labels = jnp.stack([jnp.zeros((2, 2), int), jnp.ones((2, 2), int), jnp.full((2, 2), 255)])
    share = 0.25
    expected = [(1 - share) * np.log1p(np.exp(0.7)), share * np.log1p(np.exp(-0.7))]
    value = balanced_cross_entropy(logits, labels, jnp.ones(3), positive_share=share)
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-6)  # the last one counts nowhere
    assert np.isnan(balanced_cross_entropy(logits[:1], labels[:1] + 2, jnp.ones(1)))
    with pytest.raises(UserError, match="positive_share = 1.5"):
        balanced_cross_entropy(logits, labels, jnp.ones(3), positive_share=1.5)
    with pytest.raises(UserError, match="needs outputs \\[B, H, W, 1\\]"):
        balanced_cross_entropy(logits[..., 0], labels, jnp.ones(3))


def within(pixels, others, tolerance):
    places = np.argwhere(others)
    return np.array([np.abs(places - place).max(1).min(initial=99) <= tolerance for place in np.argwhere(pixels)])


def test_scores_are_those_of_scikit_learn_and_of_a_count():
    rng = np.random.default_rng(2)
    batches = [masks(seed, void=0.02) for seed in (3, 4)]
    metric, total, kept = METRICS["boundaries_found"], None, []
    update = jax.jit(lambda outputs, batch: metric.update(metric.init(1), outputs, batch))
    for found in batches:
        weight = np.array([1, 1, 0, 1], np.float32)
        batch = metric_batch(TASK, {"mask": jnp.asarray(found), "weight": weight})
        labels = np.asarray(batch["label"])
        logits = (rng.normal(size=labels.shape) + (labels == 1)).astype(np.float32)
        total = accumulate(total, update(logits[..., None], batch))
        kept += [(1 / (1 + np.exp(-z.astype(np.float32))), y) for z, y in zip(logits[weight > 0], labels[weight > 0],
                                                                            strict=True)]
    found = metric.compute(total)
    binned = [(np.floor(p * BINS) / BINS, y) for p, y in kept]
    scores, truth = (np.concatenate([np.ravel(pair[i][pair[1] != 255]) for pair in binned]) for i in (0, 1))
    assert found["boundary_average_precision"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    assert found["boundary_half_f1"] == pytest.approx(f1_score(truth, scores >= 0.5), abs=1e-9)
    best = 0
    for threshold in np.unique(scores):
        hits = [(within((p >= threshold) & (y != 255), y == 1, 1), within(y == 1, (p >= threshold) & (y != 255), 1))
                for p, y in binned]
        precision, recall = (np.concatenate([hit[i] for hit in hits]).mean() for i in (0, 1))
        best = max(best, 2 * precision * recall / (precision + recall))
    assert found["boundary_ods_f1"] == pytest.approx(best, abs=1e-9)


def test_a_perfect_answer_has_one_and_no_border_no_score():
    metric, labels = METRICS["boundaries_found"], boundary_map(jnp.asarray(masks(5, void=0)))
    update = jax.jit(lambda labels: metric.update(metric.init(1), 20.0 * (labels[..., None] == 1) - 10,
                                                  {"label": labels}))
    assert set(metric.compute(accumulate(None, update(labels))).values()) == {1.0}
    assert np.isnan(list(metric.compute(accumulate(None, update(0 * labels))).values())).all()


def test_answers_are_bits_a_pixel():
    assert head_outputs(TASK) == 1 and TASK.label == "mask"
    found = predict(TASK, jnp.array([1.0, -3.0]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(found["prediction"], [[[1, 0]]])
    np.testing.assert_allclose(found["confidence"], 1 / (1 + np.exp([[[-1.0, -3.0]]])), rtol=1e-6)
