"""How well the borders of a segmentation follow the true ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.tasks.metric import Batch, State, mean_metric, present, split_count

TOLERANCE = 0.0075  # of the diagonal of the image, as Csurka et al. take


def tolerance_of(size: Sequence[int]) -> int:
    """Rows and columns by which a border may be off in an image of this height and width; at least 1."""
    return max(1, math.ceil(TOLERANCE * math.hypot(*size)))


def borders(regions: jax.Array) -> jax.Array:
    """bool [..., H, W] of regions -> their pixels with one of four neighbours, inside the image, out of the region."""
    padded = jnp.pad(regions, [(0, 0)] * (regions.ndim - 2) + [(1, 1), (1, 1)], constant_values=True)
    inside = padded[..., :-2, 1:-1] & padded[..., 2:, 1:-1] & padded[..., 1:-1, :-2] & padded[..., 1:-1, 2:]
    return regions & ~inside


def near(pixels: jax.Array, tolerance: int) -> jax.Array:
    """bool [..., H, W]: within `tolerance` rows and columns of a pixel that is set."""
    side = 2 * tolerance + 1
    window = (1,) * (pixels.ndim - 2) + (side, side)
    found = jax.lax.reduce_window(pixels.astype(jnp.int32), 0, jax.lax.max, window, (1,) * pixels.ndim, "SAME")
    return found > 0


def border_scores(predicted: jax.Array, labels: jax.Array, classes: int, tolerance: int) -> jax.Array:
    """F1 of borders of each image and class, float32 [B, K]; NaN for a class that neither has.

    Precision is the share of predicted border pixels within the tolerance of a true one, recall the other way round
    (Csurka et al. 2013). A class that only one of the two has, or whose border nothing meets, has 0; one that fills the
    whole image in both has no border, and 1. Pixels whose label is no class (void) belong to none in both.
    """
    known = (labels >= 0) & (labels < classes)
    masks = [(jnp.where(known, found, -1)[:, None] == jnp.arange(classes)[:, None, None]) for found in
             (predicted, labels)]
    mine, truth = (borders(mask) for mask in masks)

    def share(pixels: jax.Array, others: jax.Array) -> jax.Array:
        hit = jnp.sum(pixels & near(others, tolerance), (-2, -1))
        return hit / jnp.maximum(jnp.sum(pixels, (-2, -1)), 1)

    precision, recall = share(mine, truth), share(truth, mine)
    score = 2 * precision * recall / jnp.maximum(precision + recall, 1e-12)
    has = [mask.any((-2, -1)) for mask in masks]
    without = ~mine.any((-2, -1)) & ~truth.any((-2, -1))
    score = jnp.where(without & has[0] & has[1], 1.0, score)
    return jnp.where(has[0] | has[1], score, jnp.nan)


def _measure(outputs: jax.Array, batch: Batch) -> State:
    labels = batch["label"]
    if outputs.shape[:-1] != labels.shape or labels.ndim != 3:
        raise UserError(f"boundary_f1 needs outputs [B, H, W, classes] and labels [B, H, W], got {outputs.shape} and "
                        f"{labels.shape}; check the task's head and label")
    scores = border_scores(jnp.argmax(outputs, -1), labels, outputs.shape[-1], tolerance_of(labels.shape[1:]))
    known = ~jnp.isnan(scores)
    counted = present(labels, batch) & known.any(-1)
    means = jnp.where(known, scores, 0.0).sum(-1) / jnp.maximum(known.sum(-1), 1)
    return {"sum": jnp.where(counted, means, 0.0).sum(), "count": split_count(counted.sum(dtype=jnp.int32))}


# The mean over images of the mean over the classes that an image or its prediction has.
BOUNDARY_F1 = mean_metric(_measure, "boundary_f1", "max", counts=False)
