"""Boundary detection: one logit a pixel, whether it lies on a border between two classes of a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.labels import VOID
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.core.spec import Component
from transfer_jax.tasks.boundaries import near, tolerance_of
from transfer_jax.tasks.kind import TaskKind, one_number
from transfer_jax.tasks.metric import (
    Batch,
    Metric,
    Result,
    State,
    empty_count,
    joined_count,
    present,
    ratio,
    split_count,
    spread,
)

BINS = 200  # of probabilities
COUNTS = ("true", "false", "near", "met")


def boundary_map(masks: jax.Array) -> jax.Array:
    """int [..., H, W] of classes -> int32: 1 where one of the four neighbours has another class, else 0.

    Both sides of a border are marked, so it is two pixels wide; the edge of the image is none. `VOID`: pixels without a
    class, and those beside one that would else be 0, since nobody knows whether a border runs there.
    """
    padded = jnp.pad(masks, [(0, 0)] * (masks.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    neighbours = (padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:])
    on_border = sum((_known(one) & (one != masks)).astype(jnp.int32) for one in neighbours) > 0
    unclear = sum((~_known(one)).astype(jnp.int32) for one in neighbours) > 0
    return jnp.where(~_known(masks) | (~on_border & unclear), VOID, on_border.astype(jnp.int32))


def _known(masks: jax.Array) -> jax.Array:
    return (masks >= 0) & (masks != VOID)


def balanced_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array, *,
                           positive_share: float = 0.5) -> jax.Array:
    """Sigmoid cross-entropy in which both classes of an image weigh the same, however few pixels one has.

    s mean_{Y+} -log p + (1 - s) mean_{Y-} -log(1 - p), mean over images. With s = 1/2 it is the loss of Xie & Tu (2015,
    "Holistically-nested edge detection", equation 2) divided by 2 |Y+| |Y-| / |Y|, so that it does not grow with the
    image. An image without one of the classes has the other part alone; one without a pixel that counts has no part.

    Args:
      logits: float [B, H, W, 1].
      labels: int [B, H, W], 1, 0 or `VOID` for pixels that do not count; others make the loss NaN.
      weights: float [B].
      positive_share: s in [0, 1].
    """
    if not 0 <= positive_share <= 1:
        raise UserError(f"positive_share = {positive_share} of balanced_cross_entropy does not fit: give a number in "
                        f"[0, 1]")
    losses = _image_losses(logits, labels, positive_share)
    counted = jnp.any(labels != VOID, (1, 2))
    return weighted_mean(losses, weights * counted)


def _image_losses(logits: jax.Array, labels: jax.Array, positive_share: float = 0.5) -> jax.Array:
    """float32 [B]."""
    _check("balanced_cross_entropy", logits, labels)
    logits = logits[..., 0].astype(jnp.float32)

    def part(flags: jax.Array, signed: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.where(flags, -jax.nn.log_sigmoid(signed), 0.0), (1, 2))
        return total / jnp.maximum(jnp.sum(flags, (1, 2)), 1)

    losses = positive_share * part(labels == 1, logits) + (1 - positive_share) * part(labels == 0, -logits)
    sound = jnp.all((labels == 0) | (labels == 1) | (labels == VOID), (1, 2))
    return jnp.where(sound, losses, jnp.nan)


def _check(name: str, outputs: jax.Array, labels: jax.Array) -> None:
    if labels.ndim != 3 or outputs.shape != (*labels.shape, 1):
        raise UserError(f"{name} needs outputs [B, H, W, 1] and maps [B, H, W], got {outputs.shape} and "
                        f"{labels.shape}; check the task's head and label")


def _empty(num_classes: int) -> State:
    del num_classes
    return {name: empty_count(BINS) for name in COUNTS}


def _measure(outputs: jax.Array, batch: Batch) -> State:
    """Pixels by the bin of their probability: true ones, false ones, those within the tolerance of a true one, and true
    ones by the highest probability within the tolerance."""
    labels = batch["label"]
    _check("boundaries_found", outputs, labels)
    tolerance = tolerance_of(labels.shape[1:])
    counted = spread(present(labels, batch), labels.shape) & ((labels == 0) | (labels == 1))
    true = counted & (labels == 1)
    found = jnp.where(counted, jnp.nan_to_num(jax.nn.sigmoid(outputs[..., 0].astype(jnp.float32))), 0.0)
    side = 2 * tolerance + 1
    highest = jax.lax.reduce_window(found, 0.0, jax.lax.max, (1, side, side), (1, 1, 1), "SAME")
    counts = {"true": _histogram(found, true), "false": _histogram(found, counted & ~true),
              "near": _histogram(found, counted & near(true, tolerance)), "met": _histogram(highest, true)}
    return {name: split_count(count) for name, count in counts.items()}


def _histogram(values: jax.Array, flags: jax.Array) -> jax.Array:
    """int32 [BINS]: how many of the flagged values in [0, 1] lie in each bin."""
    bins = jnp.clip((values * BINS).astype(jnp.int32), 0, BINS - 1)
    return jnp.zeros(BINS, jnp.int32).at[bins.reshape(-1)].add(flags.reshape(-1).astype(jnp.int32))


def _compute(state: State) -> Result:
    """Of the counts at and above every threshold, the highest first."""
    above = {name: np.cumsum(joined_count(state[name])[::-1]) for name in COUNTS}
    answered, number = above["true"] + above["false"], above["true"][-1]
    if not number:
        return dict.fromkeys(BETTER, float("nan"))
    recall, precision = above["true"] / number, np.nan_to_num(ratio(above["true"], answered))
    half = BINS // 2 - 1  # the last bin from above whose probabilities are 0.5 or more
    within = _f1(np.nan_to_num(ratio(above["near"], answered)), above["met"] / number)
    return {"boundary_average_precision": float(np.sum(np.diff(recall, prepend=0.0) * precision)),
            "boundary_ods_f1": float(within.max()),
            "boundary_half_f1": float(_f1(precision, recall)[half])}


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return np.nan_to_num(ratio(2 * precision * recall, precision + recall))


# `boundary_average_precision` and `boundary_half_f1` (at probability 0.5) compare pixel with pixel. `boundary_ods_f1`
# takes the threshold that is best for the whole stream, and forgives shifts within the tolerance of `boundary_f1`.
BETTER = {"boundary_average_precision": "max", "boundary_ods_f1": "max", "boundary_half_f1": "max"}
BOUNDARIES_FOUND = Metric(_empty, _measure, _compute, BETTER)


def predict_border(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logits [B, H, W, 1] -> prediction int32 [B, H, W], 1 where the logit is positive, and `confidence`."""
    probability = jax.nn.sigmoid(outputs[..., 0].astype(jnp.float32))
    return {"prediction": (probability > 0.5).astype(jnp.int32),
            "confidence": jnp.maximum(probability, 1 - probability)}


BOUNDARY_DETECTION = TaskKind(
    label="mask", loss=Component(kind="balanced_cross_entropy"), outputs=one_number, predict=predict_border,
    metrics=("boundaries_found",), has_classes=False, terms={"balanced_cross_entropy": balanced_cross_entropy},
    measures={"boundaries_found": BOUNDARIES_FOUND}, error=_image_losses, target=boundary_map,
    answers="masks")
