"""Supervised losses against PyTorch, closed forms and their own symmetries."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.objectives import TERMS
from transfer_jax.objectives.supervised import (
    binary_cross_entropy,
    cross_entropy,
    dice,
    segmentation_cross_entropy,
    squared_error,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (12, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 12).astype(np.int32)
PIXELS = RNG.normal(0, 2, (3, 4, 6, 5)).astype(np.float32)
MASKS = RNG.integers(0, 5, (3, 4, 6)).astype(np.int32)
ONES = jnp.ones(12)
CLASS_WEIGHTS = (0.5, 1.0, 3.0, 0.0, 2.0)


def one_hot(labels, classes):
    return np.eye(classes, dtype=np.float32)[labels]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
def test_cross_entropy_equals_torch(smoothing, class_weights, torch):
    F = torch.nn.functional
    ours = cross_entropy(LOGITS, LABELS, None, ONES, label_smoothing=smoothing, class_weights=class_weights)
    weight = None if class_weights is None else torch.tensor(class_weights)
    theirs = F.cross_entropy(torch.tensor(LOGITS), torch.tensor(LABELS).long(), weight, label_smoothing=smoothing)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    assert ours.dtype == jnp.float32 and ours.shape == ()


def test_probability_targets_equal_torch_and_one_hot_equals_integers(torch):
    F = torch.nn.functional
    probabilities = RNG.dirichlet(np.ones(5), 12).astype(np.float32)
    ours = cross_entropy(LOGITS, LABELS, probabilities, ONES, label_smoothing=0.2)
    theirs = F.cross_entropy(torch.tensor(LOGITS), torch.tensor(probabilities), label_smoothing=0.2)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    options = dict(label_smoothing=0.1, class_weights=CLASS_WEIGHTS)
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, one_hot(LABELS, 5), ONES, **options),
                               cross_entropy(LOGITS, LABELS, None, ONES, **options), rtol=1e-6)


def test_label_smoothing_mixes_the_loss_with_that_of_the_uniform_target():
    uniform = np.full((12, 5), 0.2, np.float32)
    mixed = 0.7 * cross_entropy(LOGITS, LABELS, None, ONES) + 0.3 * cross_entropy(LOGITS, LABELS, uniform, ONES)
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, None, ONES, label_smoothing=0.3), mixed, rtol=1e-6)


@pytest.mark.parametrize("term", ["cross_entropy", "segmentation_cross_entropy", "dice", "binary_cross_entropy",
                                  "squared_error"])
def test_rows_of_weight_zero_change_neither_value_nor_gradient(term):
    pixels = term in ("segmentation_cross_entropy", "dice")
    logits, labels = (PIXELS, MASKS) if pixels else (LOGITS, LABELS)
    if term in ("binary_cross_entropy", "squared_error"):
        logits, labels = LOGITS[:, 0], (LABELS % 2).astype(np.float32)
    junk = np.full_like(logits[:2], 50.0), np.full_like(labels[:2], 77)

    def loss(logits, labels, weights):
        known = {"logits": logits, "labels": labels, "weights": weights, "label_probs": None}
        needed = [name for name, p in inspect.signature(TERMS[term]).parameters.items() if p.kind != p.KEYWORD_ONLY]
        return TERMS[term](**{name: known[name] for name in needed})

    n, both = len(logits), jax.jit(jax.value_and_grad(loss))
    plain = both(jnp.asarray(logits), labels, jnp.ones(n))
    padded = both(np.concatenate([logits, junk[0]]), np.concatenate([labels, junk[1]]),
                  np.concatenate([np.ones(n, np.float32), np.zeros(2, np.float32)]))
    np.testing.assert_allclose(padded[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(padded[1][:n], plain[1], rtol=1e-5, atol=1e-7)
    assert not np.any(padded[1][n:])
    value, gradient = both(jnp.asarray(logits), labels, jnp.zeros(n))
    assert value == 0 and not np.any(gradient)


def test_example_weights_give_the_weighted_mean(torch):
    F = torch.nn.functional
    weights = RNG.uniform(0.1, 3, 12).astype(np.float32)
    each = F.cross_entropy(torch.tensor(LOGITS), torch.tensor(LABELS).long(), reduction="none").numpy()
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, None, weights), np.average(each, weights=weights),
                               rtol=1e-5)


@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
def test_segmentation_cross_entropy_equals_torch_with_void_pixels(class_weights, torch):
    F = torch.nn.functional
    masks = np.where(RNG.random(MASKS.shape) < 0.3, 255, MASKS).astype(np.int32)
    ours = segmentation_cross_entropy(PIXELS, masks, jnp.ones(3), ignore_label=255, class_weights=class_weights,
                                      label_smoothing=0.1)
    weight = None if class_weights is None else torch.tensor(class_weights)
    theirs = F.cross_entropy(torch.tensor(PIXELS).permute(0, 3, 1, 2), torch.tensor(masks).long(), weight,
                             ignore_index=255, label_smoothing=0.1)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)


def test_a_label_outside_the_classes_makes_the_loss_nan():
    assert np.isnan(cross_entropy(LOGITS, np.where(np.arange(12) == 3, 5, LABELS), None, ONES))
    assert np.isnan(cross_entropy(LOGITS, np.full(12, -1), None, ONES))
    assert np.isnan(segmentation_cross_entropy(PIXELS, np.where(MASKS == 0, 255, MASKS), jnp.ones(3)))
    assert np.isnan(dice(PIXELS, np.where(MASKS == 0, 255, MASKS), jnp.ones(3)))
    assert np.isnan(binary_cross_entropy(LOGITS[:, 0], LABELS, None, ONES))


def test_all_pixels_void_gives_zero():
    assert segmentation_cross_entropy(PIXELS, np.full_like(MASKS, 9), jnp.ones(3), ignore_label=9) == 0


def test_dice_is_zero_for_the_truth_one_for_disjoint_masks_and_equals_its_formula():
    exact = 100.0 * one_hot(MASKS, 5)
    np.testing.assert_allclose(dice(exact, MASKS, jnp.ones(3)), 0, atol=1e-6)
    wrong = np.where(MASKS == 0, 1, 0).astype(np.int32)
    np.testing.assert_allclose(dice(exact[..., :2] * (MASKS < 2)[..., None] + 100 * one_hot((MASKS >= 2) * 1, 2) *
                                    (MASKS >= 2)[..., None], wrong, jnp.ones(3), smooth=0.0), 1, atol=1e-6)
    p = np.exp(PIXELS) / np.exp(PIXELS).sum(-1, keepdims=True)
    g = one_hot(MASKS, 5)
    scores = (2 * (p * g).sum((1, 2)) + 1) / ((p**2).sum((1, 2)) + (g**2).sum((1, 2)) + 1)
    np.testing.assert_allclose(dice(PIXELS, MASKS, jnp.ones(3)), 1 - scores.mean(), rtol=1e-5)
    np.testing.assert_allclose(dice(PIXELS, MASKS, jnp.ones(3), background=False), 1 - scores[:, 1:].mean(), rtol=1e-5)


def test_dice_leaves_ignored_pixels_out():
    masks = MASKS.copy()
    masks[:, 0] = 255
    np.testing.assert_allclose(dice(PIXELS, masks, jnp.ones(3), ignore_label=255),
                               dice(PIXELS[:, 1:], MASKS[:, 1:], jnp.ones(3)), rtol=1e-6)


@pytest.mark.parametrize("positive_weight", [1.0, 4.0])
def test_binary_cross_entropy_equals_torch(positive_weight, torch):
    F = torch.nn.functional
    bits = (LABELS[:, None] > np.arange(5)).astype(np.float32)
    ours = binary_cross_entropy(LOGITS, bits, None, ONES, positive_weight=positive_weight)
    theirs = F.binary_cross_entropy_with_logits(torch.tensor(LOGITS), torch.tensor(bits),
                                                pos_weight=torch.tensor(positive_weight))
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)


def test_binary_cross_entropy_is_cross_entropy_of_two_classes():
    logit, bits = LOGITS[:, :1], (LABELS % 2).astype(np.int32)
    pair = np.concatenate([np.zeros_like(logit), logit], axis=1)
    for probs in (None, RNG.dirichlet(np.ones(2), 12).astype(np.float32)):
        np.testing.assert_allclose(binary_cross_entropy(logit, bits, probs, ONES, label_smoothing=0.1),
                                   cross_entropy(pair, bits, probs, ONES, label_smoothing=0.1), rtol=1e-5)


def test_squared_error_equals_torch(torch):
    F = torch.nn.functional
    labels = RNG.normal(size=(12, 5)).astype(np.float32)
    np.testing.assert_allclose(squared_error(LOGITS, labels, ONES),
                               F.mse_loss(torch.tensor(LOGITS), torch.tensor(labels)).item(), rtol=1e-5)
    np.testing.assert_allclose(squared_error(LOGITS[:, :1], labels[:, 0], ONES),
                               np.mean((LOGITS[:, 0] - labels[:, 0])**2), rtol=1e-5)


def test_gradients():
    weights = RNG.uniform(0.1, 2, 12).astype(np.float32)
    options = dict(label_smoothing=0.1, class_weights=CLASS_WEIGHTS)
    for loss, logits in ((lambda z: cross_entropy(z, LABELS, None, weights, **options), LOGITS),
                         (lambda z: dice(z, MASKS, jnp.ones(3)), PIXELS)):
        loss, towards = jax.jit(loss), 0.02 * RNG.normal(size=logits.shape).astype(np.float32)
        slope = (loss(logits + towards) - loss(logits - towards)) / 2
        np.testing.assert_allclose(np.vdot(jax.jit(jax.grad(loss))(logits), towards), slope, rtol=1e-2, atol=1e-6)
    closed = (jax.nn.softmax(LOGITS) - one_hot(LABELS, 5)) / 12
    np.testing.assert_allclose(jax.grad(lambda z: cross_entropy(z, LABELS, None, ONES))(LOGITS), closed, atol=1e-6)


def test_extreme_logits_and_bfloat16_stay_finite_float32():
    value, gradient = jax.value_and_grad(lambda z: cross_entropy(z, LABELS, None, ONES))(LOGITS * 1e4)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    half = cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), LABELS, None, ONES)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, cross_entropy(LOGITS, LABELS, None, ONES), rtol=2e-2)
    assert np.isfinite(jax.grad(lambda z: binary_cross_entropy(z, LABELS % 2, None, ONES))(LOGITS[:, 0] * 1e4)).all()


@pytest.mark.parametrize("call, words", [
    (lambda: cross_entropy(PIXELS, MASKS, None, ONES), "segmentation_cross_entropy"),
    (lambda: cross_entropy(LOGITS, LABELS, np.ones((12, 4)), ONES), "as many outputs"),
    (lambda: cross_entropy(LOGITS, LABELS, None, ONES, label_smoothing=1.0), "label_smoothing = 1.0"),
    (lambda: cross_entropy(LOGITS, LABELS, None, ONES, class_weights=(1, 2)), "give 5 numbers"),
    (lambda: segmentation_cross_entropy(PIXELS, MASKS[:, :2], jnp.ones(3)), "check the head"),
    (lambda: binary_cross_entropy(LOGITS, LABELS, None, ONES), "one output per label"),
    (lambda: squared_error(LOGITS, LABELS, ONES), "one output per label"),
])
def test_misfits_are_one_clear_sentence(call, words):
    with pytest.raises(UserError, match=words):
        call()
