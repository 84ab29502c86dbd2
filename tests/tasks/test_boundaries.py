"""F1 of borders against a count pixel by pixel."""

import jax
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation import METRICS
from transfer_jax.tasks.boundaries import border_scores
from transfer_jax.tasks.metric import accumulate

SCORES = jax.jit(border_scores, static_argnums=(2, 3))


def border(mask):
    """Pixels of the mask with a neighbour outside, one by one."""
    height, width = mask.shape
    return {(i, j) for i, j in np.argwhere(mask) for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
            if 0 <= a < height and 0 <= b < width and not mask[a, b]}


def score(predicted, labels, k, tolerance, classes):
    known = (labels >= 0) & (labels < classes)
    mine, truth = (border((found == k) & known) for found in (predicted, labels))
    has = [((found == k) & known).any() for found in (predicted, labels)]
    if not any(has):
        return np.nan
    if not mine and not truth:
        return 1.0 if all(has) else 0.0

    def share(pixels, others):
        return np.mean([any(max(abs(i - a), abs(j - b)) <= tolerance for a, b in others) for i, j in pixels]) \
            if pixels else 0.0

    precision, recall = share(mine, truth), share(truth, mine)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blocks(generator, count, side=8, classes=3):
    """Maps of blocks of 2 x 2 pixels, some of them void, and some of one class."""
    maps = generator.integers(0, classes, (count, side // 2, side // 2)).repeat(2, 1).repeat(2, 2)
    maps[::7] = generator.integers(0, classes)
    return maps


@pytest.mark.parametrize("tolerance", [1, 2])
def test_scores_are_a_count_of_pixels(tolerance):
    generator = np.random.default_rng(tolerance)
    predicted, labels = blocks(generator, 150), blocks(generator, 150)
    labels = np.where(generator.uniform(size=labels.shape) < 0.05, 255, labels)
    found = np.asarray(SCORES(predicted, labels, 3, tolerance))
    expected = [[score(p, t, k, tolerance, 3) for k in range(3)] for p, t in zip(predicted, labels, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_is_right_has_one_and_what_is_shifted_beyond_the_tolerance_less():
    labels = np.zeros((1, 16, 16), int)
    labels[:, 4:10, 4:10] = 1
    assert (np.asarray(SCORES(labels, labels, 2, 1)) == 1).all()
    near, far = (np.roll(labels, shift, 2) for shift in (1, 4))
    assert np.asarray(SCORES(near, labels, 2, 1)).min() == 1
    assert np.asarray(SCORES(far, labels, 2, 1)).max() < 1


def test_the_metric_is_the_mean_over_images_and_leaves_padding_out():
    generator = np.random.default_rng(0)
    labels, outputs = blocks(generator, 6), generator.normal(size=(6, 8, 8, 3)).astype(np.float32)
    metric = METRICS["boundary_f1"]
    weight = np.array([1, 1, 1, 1, 0, 1], np.float32)
    state = metric.update(metric.init(3), outputs, {"label": labels, "weight": weight})
    scores = np.asarray(SCORES(outputs.argmax(-1), labels, 3, 1))
    means = np.nanmean(scores, 1)
    np.testing.assert_allclose(metric.compute(accumulate(None, state))["boundary_f1"], means[weight > 0].mean(),
                               rtol=1e-5)
    with pytest.raises(UserError, match="boundary_f1 needs outputs"):
        metric.update(metric.init(3), outputs[:, 0], {"label": labels})
