"""Surface normals: a direction for every pixel.

Labels are float32 [B, H, W, 3] of length 1, or 0 where nobody knows; such pixels count nowhere.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import ClassNames, TaskKind
from transfer_jax.tasks.metric import (
    Batch,
    Metric,
    Result,
    State,
    count_of,
    empty_count,
    joined_count,
    present,
    ratio,
    split_count,
    spread,
)

SHORTEST = 1e-6  # below which an answer has no direction, and no slope
BINS = 3600  # of angles, 0.05 degrees each
WITHIN = (11.25, 22.5, 30.0)  # degrees, as Fouhey, Gupta & Hebert (2013) count


def three(class_names: ClassNames) -> int:
    """x, y and z."""
    del class_names
    return 3


def directions(outputs: jax.Array) -> jax.Array:
    """float [..., 3] -> float32 of length 1."""
    outputs = outputs.astype(jnp.float32)
    return outputs * jax.lax.rsqrt(jnp.maximum(jnp.sum(outputs**2, -1, keepdims=True), SHORTEST**2))


def predict_normals(outputs: jax.Array) -> dict[str, jax.Array]:
    """Outputs [B, H, W, 3] -> prediction float32 [B, H, W, 3] of length 1."""
    return {"prediction": directions(outputs)}


def _cosines(name: str, outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines of the angles [B, H, W], and whether the normal is known."""
    if labels.ndim != 4 or labels.shape[-1] != 3 or outputs.shape != labels.shape:
        raise UserError(f"{name} needs outputs and normals [B, H, W, 3], got {outputs.shape} and {labels.shape}; check "
                        f"the task's head and label")
    return jnp.sum(directions(outputs) * labels, -1), jnp.sum(labels**2, -1) > 0.25


def cosine_distance(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """1 - cos of the angle between answer and normal, mean over all known pixels of the batch.

    Args:
      logits: float [B, H, W, 3], of any length.
      labels: float [B, H, W, 3].
      weights: float [B].
    """
    cosines, known = _cosines("cosine_distance", logits, labels)
    return weighted_mean(jnp.where(known, 1 - cosines, 0.0), weights, known.astype(jnp.float32))


def angles(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Degrees between directions [..., 3] of length 1, exact for small angles too, where the cosine is not (Kahan)."""
    apart, along = (jnp.linalg.norm(outputs + sign * labels, axis=-1) for sign in (-1, 1))
    return jnp.rad2deg(2 * jnp.arctan2(apart, along))


def error_of_image(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """float32 [B]: mean angle in degrees over the known pixels of an image; 0 without one."""
    _, known = _cosines("normals", outputs, labels)
    found = jnp.where(known, angles(directions(outputs), labels), 0.0)
    return found.sum((1, 2)) / jnp.maximum(known.sum((1, 2)), 1)


def _empty(outputs: int) -> State:
    del outputs
    return {"sum": jnp.zeros((), jnp.float32), "pixels": empty_count(), "bins": empty_count(BINS),
            "within": empty_count(len(WITHIN))}


def _measure(outputs: jax.Array, batch: Batch) -> State:
    labels = batch["label"]
    _, known = _cosines("normal_angles", outputs, labels)
    known &= spread(present(labels, batch), known.shape)
    found = angles(directions(outputs), labels)
    places = jnp.where(known, jnp.clip((found * (BINS / 180)).astype(jnp.int32), 0, BINS - 1), BINS)
    bins = jnp.zeros(BINS + 1, jnp.int32).at[places.reshape(-1)].add(1)[:-1]
    within = jnp.stack([jnp.sum(known & (found < limit), dtype=jnp.int32) for limit in WITHIN])
    return {"sum": jnp.sum(jnp.where(known, found, 0.0)), "pixels": count_of(known), "bins": split_count(bins),
            "within": split_count(within)}


def _compute(state: State) -> Result:
    """Over all known pixels of the stream; the median is exact to the 0.05 degrees of its bin."""
    pixels, bins = joined_count(state["pixels"]), joined_count(state["bins"])
    shares = ratio(joined_count(state["within"]), np.full(len(WITHIN), pixels))
    median = float("nan")
    if pixels:
        reached = np.cumsum(bins)
        bin_ = int(np.searchsorted(reached, pixels / 2))
        median = (bin_ + 1 - (reached[bin_] - pixels / 2) / bins[bin_]) * 180 / BINS
    return {"mean_angle_error": float(ratio(state["sum"], pixels)), "median_angle_error": float(median),
            **dict(zip(SHARES, map(float, shares), strict=True))}


SHARES = ("within_11_25", "within_22_5", "within_30")
NORMAL_ANGLES = Metric(_empty, _measure, _compute, {"mean_angle_error": "min", "median_angle_error": "min",
                                                    **dict.fromkeys(SHARES, "max")})

NORMALS = TaskKind(
    label="normals", loss=Component(kind="cosine_distance"), outputs=three, predict=predict_normals,
    metrics=("normal_angles",), has_classes=False, terms={"cosine_distance": cosine_distance},
    measures={"normal_angles": NORMAL_ANGLES}, error=error_of_image, answers="normals")
