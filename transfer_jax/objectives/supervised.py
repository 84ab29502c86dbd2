"""Losses against labels: classes, probabilities, bits, numbers and per-pixel classes.

All compute in float32 whatever the dtype of the logits, and return the weighted mean over the batch. A class label
outside 0..K-1 on an example that counts makes the loss NaN: the loop then stops and names the term, where a silent
zero would train on nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean


def cross_entropy(logits: jax.Array, labels: jax.Array, label_probs: jax.Array | None, weights: jax.Array, *,
                  label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> jax.Array:
    """Softmax cross-entropy, -sum_k q_k log p_k, with q smoothed to (1 - e) q + e / K (Szegedy et al. 2016, section 7).

    With class weights c the terms of the sum are multiplied by c_k, and the mean divides by the weight of the true
    classes, sum_i w_i sum_k q_ik c_k with q before smoothing, so that one-hot probabilities equal integer labels.

    Args:
      logits: float [B, K].
      labels: int [B], the classes; ignored where `label_probs` is given.
      label_probs: float [B, K], target distributions (from mixup and the like), or None.
      weights: float [B], the weight of each example.
      label_smoothing: e in [0, 1).
      class_weights: K non-negative numbers, or None for 1 each.

    Raises:
      UserError: for shapes that do not fit, a smoothing outside [0, 1) or a wrong number of class weights.
    """
    if logits.ndim != 2 or (label_probs is None and labels.shape != logits.shape[:1]):
        raise UserError(f"cross_entropy needs outputs [batch, classes] and labels [batch], got {logits.shape} and "
                        f"{labels.shape}; use segmentation_cross_entropy for per-pixel classes")
    if label_probs is None:
        targets, valid = _class_targets(labels, logits.shape[-1])
        return _mean_cross_entropy(logits, targets, valid, weights, label_smoothing, class_weights)
    if label_probs.shape != logits.shape:
        raise UserError(f"cross_entropy: target probabilities {label_probs.shape} do not fit the outputs "
                        f"{logits.shape}; give the head as many outputs as there are classes")
    valid = jnp.ones(logits.shape[:1], bool)
    return _mean_cross_entropy(logits, label_probs.astype(jnp.float32), valid, weights, label_smoothing, class_weights)


def segmentation_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array, *,
                               label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None,
                               ignore_label: int | None = None) -> jax.Array:
    """Softmax cross-entropy, averaged over the pixels of all examples (each pixel with its example's weight).

    Args:
      logits: float [B, H, W, K].
      labels: int [B, H, W]; pixels equal to `ignore_label` count for nothing, neither above nor below the fraction.
      weights: float [B].
      label_smoothing, class_weights: as in `cross_entropy`.
      ignore_label: the void class (often 255), or None.
    """
    _check_pixels("segmentation_cross_entropy", logits, labels)
    targets, valid = _class_targets(labels, logits.shape[-1])
    counted = jnp.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label
    return _mean_cross_entropy(logits, targets, valid, weights, label_smoothing, class_weights, counted)


def dice(logits: jax.Array, labels: jax.Array, weights: jax.Array, *, smooth: float = 1.0, background: bool = True,
         ignore_label: int | None = None) -> jax.Array:
    """Soft Dice loss, 1 - (2 sum p g + s) / (sum p^2 + sum g^2 + s), with the sums over the pixels of one image.

    The ratio of Milletari, Navab & Ahmadi (2016, section 3), averaged over the classes of an image, then over images.
    The smoothing s makes it 1 for a class that an image has neither in truth nor in the prediction.

    Args:
      logits: float [B, H, W, K]; the probabilities p are their softmax.
      labels: int [B, H, W], turned into indicators g.
      weights: float [B].
      smooth: s >= 0.
      background: whether class 0 takes part in the average.
      ignore_label: pixels of this class are left out of all sums.
    """
    _check_pixels("dice", logits, labels)
    targets, valid = _class_targets(labels, logits.shape[-1])
    counted = jnp.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label
    targets = targets * counted[..., None]
    probabilities = jax.nn.softmax(logits.astype(jnp.float32)) * counted[..., None]
    overlap = jnp.sum(probabilities * targets, axis=(1, 2))
    areas = jnp.sum(probabilities**2 + targets**2, axis=(1, 2))
    scores = (2 * overlap + smooth) / jnp.maximum(areas + smooth, jnp.finfo(jnp.float32).tiny)
    losses = 1 - jnp.mean(scores if background else scores[:, 1:], axis=-1)
    return weighted_mean(jnp.where(jnp.all(valid | ~counted, axis=(1, 2)), losses, jnp.nan), weights)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, label_probs: jax.Array | None, weights: jax.Array, *,
                         label_smoothing: float = 0.0, positive_weight: float = 1.0) -> jax.Array:
    """Sigmoid cross-entropy, -[v t log s(z) + (1 - t) log(1 - s(z))], mean over the bits of an example, then examples.

    Args:
      logits: float z [B], [B, 1], [B, H, W, 1] or, for several independent bits, [B, D].
      labels: t in [0, 1], int or float, of that shape, with or without the last axis of length 1.
      label_probs: float [B, 2], target distributions of a single bit (from mixup and the like), or None.
      weights: float [B].
      label_smoothing: e in [0, 1): t becomes (1 - e) t + e / 2.
      positive_weight: v, the weight of positive bits.
    """
    _check_smoothing(label_smoothing)
    logits, targets = _aligned("binary_cross_entropy", logits, labels if label_probs is None else label_probs[:, 1])
    valid = (targets >= 0) & (targets <= 1)
    targets = (1 - label_smoothing) * targets + label_smoothing / 2
    losses = -(positive_weight * targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))
    return weighted_mean(jnp.where(valid, losses, jnp.nan), weights)


def squared_error(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """(output - label)^2, mean over the outputs of an example, then over examples.

    Args:
      logits: float [B], [B, D] or any [B, ...]: the outputs of the head.
      labels: of that shape, with or without a last axis of length 1.
      weights: float [B].
    """
    logits, targets = _aligned("squared_error", logits, labels)
    return weighted_mean(jnp.square(logits - targets), weights)


def online_accuracy(logits: jax.Array, labels: jax.Array,
                    weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """0, and {'accuracy'} of the predictions that a step makes before it learns from its batch: the score of test-time
    methods, which see every example once. Labels score here and move nothing.

    Args:
      logits: float [B, K]. labels: int [B]. weights: float [B].
    """
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return jnp.zeros((), jnp.float32), {"accuracy": weighted_mean(right, weights)}


def _class_targets(labels: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """int [...] -> float32 indicators [..., classes], and bool [...]: whether the label is one of the classes."""
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32), (labels >= 0) & (labels < classes)


def _mean_cross_entropy(logits: jax.Array, targets: jax.Array, valid: jax.Array, weights: jax.Array,
                        label_smoothing: float, class_weights: Sequence[float] | None,
                        counted: jax.Array | None = None) -> jax.Array:
    _check_smoothing(label_smoothing)
    classes = logits.shape[-1]
    costs = _class_costs(class_weights, classes)
    smoothed = (1 - label_smoothing) * targets + label_smoothing / classes
    losses = -jnp.sum(costs * smoothed * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
    masses = jnp.sum(costs * targets, axis=-1)
    # The constant NaN enters after the products: in a padded row it must not reach the gradient.
    losses, masses = jnp.where(valid, losses, jnp.nan), jnp.where(valid, masses, 1.0)
    if counted is not None:
        losses, masses = jnp.where(counted, losses, 0.0), jnp.where(counted, masses, 0.0)
    return weighted_mean(losses, weights, masses)


def _class_costs(class_weights: Sequence[float] | None, classes: int) -> jax.Array:
    if class_weights is None:
        return jnp.ones(classes, jnp.float32)
    if len(class_weights) != classes or min(class_weights) < 0:
        raise UserError(f"class_weights = {tuple(class_weights)} does not fit: give {classes} numbers >= 0, "
                        f"one for each class")
    return jnp.asarray(class_weights, jnp.float32)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing = {label_smoothing} does not fit: give a number in [0, 1)")


def _check_pixels(name: str, logits: jax.Array, labels: jax.Array) -> None:
    if logits.ndim != 4 or labels.shape != logits.shape[:-1]:
        raise UserError(f"{name} needs outputs [batch, height, width, classes] and labels [batch, height, width], "
                        f"got {logits.shape} and {labels.shape}; check the head and the task's label")


def _aligned(name: str, outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as float32 of one shape; only a last axis of length 1 may differ."""
    if outputs.shape != labels.shape:
        if outputs.shape == (*labels.shape, 1):
            outputs = outputs[..., 0]
        elif labels.shape == (*outputs.shape, 1):
            labels = labels[..., 0]
        else:
            raise UserError(f"{name}: outputs {outputs.shape} do not fit the labels {labels.shape}; "
                            f"give the head one output per label")
    return outputs.astype(jnp.float32), labels.astype(jnp.float32)
