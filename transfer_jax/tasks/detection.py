"""Object detection without anchors: every point of a pyramid of maps names a class and the box around it.

FCOS (Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection") with centre sampling. What the head
gives, and all that loss and answers need, is one array [B, points, classes + 11] (`Points` names its columns). Boxes
and points are in units of the image's height and width, so nothing here knows its size: IoU does not change when an
axis is scaled.

Labels are boxes float32 [B, N, 5]: ymin, xmin, ymax, xmax, class; rows of class -1 are padding.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.tasks.average_precision import MEAN_AVERAGE_PRECISION
from transfer_jax.tasks.boxes import TINY, area, generalised_iou, iou, suppress
from transfer_jax.tasks.kind import ClassNames, TaskKind

GEOMETRY = 11  # columns behind the class scores
MOST = 100  # boxes an image, as COCO counts them
CANDIDATES = 300  # that enter the suppression
LEAST_SCORE = 0.05
OVERLAP = 0.6


class Points(NamedTuple):
    """The columns of the head's output, each [..., points, columns] or [..., points]."""

    scores: jax.Array  # [..., K] logits
    centreness: jax.Array  # logit
    boxes: jax.Array  # [..., 4], ymin, xmin, ymax, xmax
    places: jax.Array  # [..., 2], y and x
    strides: jax.Array  # [..., 2], of the level, in units of height and width
    sizes: jax.Array  # [..., 2], least and greatest distance to an edge of its objects, in strides


def columns(outputs: jax.Array) -> Points:
    """The parts of [..., points, classes + 11].

    Raises:
      UserError: if the array cannot come from a detection head.
    """
    classes = outputs.shape[-1] - GEOMETRY
    if outputs.ndim < 2 or classes < 1:
        raise UserError(f"a detection task needs the outputs of a head of kind 'detection', got the shape "
                        f"{outputs.shape}; change the task's head")
    scores, rest = outputs[..., :classes], outputs[..., classes:]
    return Points(scores, rest[..., 0], rest[..., 1:5], rest[..., 5:7], rest[..., 7:9], rest[..., 9:11])


def assign(points: Points, labels: jax.Array, radius: float) -> tuple[jax.Array, jax.Array]:
    """Which object each point stands for.

    A point belongs to an object if it lies in its box, within `radius` strides of its centre along both axes, and if
    its greatest distance to an edge is in the range of its level; of several objects the smallest wins, of equally
    small ones the first.

    Args:
      points: of one image.
      labels: float32 [N, 5].

    Returns:
      (class int32 [points], -1 for background; number of the object int32 [points]).
    """
    box, classes = labels[:, :4], labels[:, 4].astype(jnp.int32)
    strides = points.strides[:, None]
    to_start = (points.places[:, None] - box[None, :, :2]) / strides
    to_end = (box[None, :, 2:] - points.places[:, None]) / strides
    edges = jnp.concatenate([to_start, to_end], -1)  # [points, N, 4]
    centre = (box[:, :2] + box[:, 2:]) / 2
    near = jnp.all(jnp.abs(points.places[:, None] - centre) <= radius * strides, -1)
    reach = edges.max(-1)
    fits = (reach >= points.sizes[:, :1]) & (reach < points.sizes[:, 1:])
    eligible = (edges.min(-1) > 0) & near & fits & (classes >= 0)
    areas = jnp.where(eligible, area(box)[None], jnp.inf)
    chosen = jnp.argmin(areas, axis=1).astype(jnp.int32)
    return jnp.where(eligible.any(1), classes[chosen], -1), chosen


def centreness_of(places: jax.Array, boxes: jax.Array) -> jax.Array:
    """sqrt of (nearer / farther edge) over both axes, [...]: 1 in the middle of a box, 0 on its edge (equation 3)."""
    start = jnp.maximum(places - boxes[..., :2], 0)
    end = jnp.maximum(boxes[..., 2:] - places, 0)
    ratios = jnp.minimum(start, end) / jnp.maximum(jnp.maximum(start, end), TINY)
    return jnp.sqrt(ratios[..., 0] * ratios[..., 1])


def focal_loss(logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """-alpha_t (1 - p_t)^gamma log p_t, elementwise, for targets 0 and 1 (Lin et al. 2017, equation 5).

    (1 - p_t)^gamma is taken as exp(gamma log(1 - p_t)), whose gradient is finite where p_t rounds to 1.
    """
    signed = jnp.where(targets > 0, logits, -logits)
    weight = jnp.where(targets > 0, alpha, 1 - alpha)
    return -weight * jnp.exp(gamma * jax.nn.log_sigmoid(-signed)) * jax.nn.log_sigmoid(signed)


def detection(logits: jax.Array, labels: jax.Array, weights: jax.Array, *, radius: float = 1.5, alpha: float = 0.25,
              gamma: float = 2.0, overlap: str = "giou") -> tuple[jax.Array, dict[str, jax.Array]]:
    """Focal loss of classes, GIoU (or -log IoU) loss of boxes weighted by centre-ness, cross-entropy of centre-ness.

    Sums over all points of the batch, divided by the points that stand for an object (boxes: by their centre-ness), at
    least 1; images without objects teach the background.

    Args:
      logits: float32 [B, points, classes + 11].
      labels: float32 [B, N, 5].
      weights: float32 [B].
      radius: of centre sampling, in strides.
      overlap: 'giou' or 'iou'.

    Returns:
      The sum of the three parts, and each of them.
    """
    if overlap not in ("giou", "iou"):
        raise UserError(f"overlap={overlap!r} of the detection loss is unknown; use 'giou' or 'iou'")
    points = columns(logits.astype(jnp.float32))
    classes, chosen = jax.vmap(lambda one, boxes: assign(one, boxes, radius))(points, labels)
    target = jnp.take_along_axis(labels[..., :4], chosen[..., None], axis=1)
    positive = (classes >= 0) * weights[:, None]
    centred = jax.lax.stop_gradient(centreness_of(points.places, target)) * positive
    count = jnp.maximum(positive.sum(), 1.0)
    found = jax.nn.one_hot(classes, points.scores.shape[-1])
    class_loss = (focal_loss(points.scores, found, alpha, gamma).sum(-1) * weights[:, None]).sum() / count
    # Elsewhere the target is a box like any other: its loss is finite, and its weight 0.
    if overlap == "giou":
        each = 1 - generalised_iou(points.boxes, target)
    else:
        each = -jnp.log(jnp.maximum(iou(points.boxes, target), 1e-6))
    box_loss = (each * centred).sum() / jnp.maximum(centred.sum(), TINY)
    target_centre = jnp.where(positive > 0, centreness_of(points.places, target), 0)
    centre_loss = (_cross_entropy(points.centreness, target_centre) * positive).sum() / count
    parts = {"class": class_loss, "box": box_loss, "centreness": centre_loss}
    return class_loss + box_loss + centre_loss, parts


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Of a probability `targets`, elementwise."""
    return -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)


def predict_boxes(outputs: jax.Array, *, most: int = MOST, candidates: int = CANDIDATES,
                  least_score: float = LEAST_SCORE, overlap: float = OVERLAP) -> dict[str, jax.Array]:
    """Outputs [B, points, K + 11] -> prediction float32 [B, most, 6]: box (cut at the border), class, score, best
    first; rows without a box have class -1 and score 0. Scores are sqrt(class x centre-ness).

    The `candidates` best pairs of a point and a class are suppressed per class at IoU `overlap`.
    """
    whole = all(isinstance(number, int) and number >= 1 for number in (most, candidates))
    if not whole or not 0 <= least_score <= 1 or not 0 <= overlap <= 1:
        raise UserError(f"'limits' of a detection task: most={most}, candidates={candidates}, "
                        f"least_score={least_score}, overlap={overlap} do not fit; give whole numbers from 1, and "
                        f"numbers in [0, 1]")
    decode = functools.partial(_decode, most=most, candidates=candidates, least_score=least_score, overlap=overlap)
    return {"prediction": jax.vmap(decode)(columns(outputs.astype(jnp.float32)))}


def _decode(points: Points, most: int, candidates: int, least_score: float, overlap: float) -> jax.Array:
    """The boxes of one image; see `predict_boxes`."""
    scores = jnp.sqrt(jax.nn.sigmoid(points.scores) * jax.nn.sigmoid(points.centreness)[:, None])
    classes = scores.shape[-1]
    best, places = jax.lax.top_k(scores.reshape(-1), min(candidates, scores.size))
    boxes, kinds = jnp.clip(points.boxes[places // classes], 0, 1), places % classes
    usable = (best >= least_score) & (area(boxes) > 0)
    order, kept = suppress(boxes, jnp.where(usable, best, -jnp.inf), kinds, overlap)
    rows = jnp.concatenate([boxes, kinds[:, None].astype(jnp.float32), best[:, None]], -1)[order]
    rows = jnp.where(kept[:, None], rows, jnp.array([0, 0, 0, 0, -1, 0], jnp.float32))
    rows = rows[jnp.argsort(~kept, stable=True)]
    missing = jnp.tile(jnp.array([[0, 0, 0, 0, -1, 0]], jnp.float32), (max(most - len(rows), 0), 1))
    return jnp.concatenate([rows[:most], missing])


def one_per_object_class(class_names: ClassNames) -> int:
    """As many scores as classes of objects; one is enough."""
    if not class_names:
        raise UserError("the detection task knows no classes of objects: its stream has no boxes; use data with boxes "
                        "and set 'boxes' in the stream")
    return len(class_names)


def missed(outputs: jax.Array, labels: jax.Array, **limits: float) -> jax.Array:
    """How wrong the answers of an image are, float32 [B]: 1 - 2 matches / (answers of score 0.5 + objects), where a
    match is an object that an answer of its class overlaps by at least half. `limits`: as in `predict_boxes`."""
    found = predict_boxes(outputs, **limits)["prediction"]

    def one(found: jax.Array, true: jax.Array) -> jax.Array:
        sure, real = found[:, 5] >= 0.5, true[:, 4] >= 0
        hits = (iou(found[:, None, :4], true[None, :, :4]) >= 0.5) & (found[:, None, 4] == true[None, :, 4])
        matches = (hits & sure[:, None]).any(0) & real
        return 1 - 2 * matches.sum() / jnp.maximum(sure.sum() + real.sum(), 1)

    return jax.vmap(one)(found, labels)


DETECTION = TaskKind(
    label="boxes", loss=Component(kind="detection"), outputs=one_per_object_class, predict=predict_boxes,
    metrics=("mean_average_precision",), terms={"detection": detection},
    measures={"mean_average_precision": MEAN_AVERAGE_PRECISION}, error=missed, names="box_class_names",
    answers="boxes")
