"""Boxes as (ymin, xmin, ymax, xmax): overlap, its generalised form, and non-maximum suppression of fixed shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

TINY = 1e-12  # an area below which a union is empty: no quotient is NaN, nor its gradient


def area(boxes: jax.Array) -> jax.Array:
    """[..., 4] -> [...]; 0 for a box whose edges are in the wrong order."""
    return jnp.maximum(boxes[..., 2] - boxes[..., 0], 0) * jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)


def intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Area that two boxes [..., 4] share, [...] (broadcast)."""
    corner, opposite = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(opposite - corner, 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of boxes [..., 4] (broadcast), [...]; 0 where both are empty."""
    shared = intersection(a, b)
    return shared / jnp.maximum(area(a) + area(b) - shared, TINY)


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """[N, 4], [M, 4] -> [N, M]."""
    return iou(a[:, None], b[None])


def generalised_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU minus the empty share of the smallest box around both, in [-1, 1] (Rezatofighi et al. 2019, algorithm 1)."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    around = jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1)
    hull = area(around)
    return shared / jnp.maximum(union, TINY) - (hull - union) / jnp.maximum(hull, TINY)


def suppress(boxes: jax.Array, scores: jax.Array, classes: jax.Array, threshold: float) -> tuple[jax.Array, jax.Array]:
    """Greedy non-maximum suppression per class, with shapes that do not depend on the data.

    From the highest score down (of equal ones the first), a box is kept unless its IoU with a kept one of its class is
    above `threshold`.

    Args:
      boxes: float32 [N, 4].
      scores: float32 [N]; -inf: no candidate.
      classes: int32 [N].

    Returns:
      (order, kept): int32 [N], the candidates by falling score, and bool [N], whether each of these stays.
    """
    order = jnp.argsort(-scores, stable=True)
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    count = len(scores)
    clash = (pairwise_iou(boxes, boxes) > threshold) & (classes[:, None] == classes[None])
    later = jnp.arange(count)[:, None] < jnp.arange(count)[None]

    def visit(number: jax.Array, kept: jax.Array) -> jax.Array:
        return kept & ~(kept[number] & (clash & later)[number])

    return order, jax.lax.fori_loop(0, count, visit, scores > -jnp.inf)
