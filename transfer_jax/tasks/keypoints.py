"""Keypoints: where each of several named points lies in the image, by a heat map a point.

A point's answer is the mean place of its heat map under softmax: integral regression (Sun, Xiao, Wei, Liang & Wei 2018,
"Integral human pose regression", equation 3). It is differentiable and finer than a pixel.

Labels are float32 [B, K, 3]: x and y in units of the image's width and height, and visibility; points of visibility 0
are not known and count nowhere.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.core.spec import Component
from transfer_jax.tasks.keypoint_precision import KEYPOINT_AVERAGE_PRECISION
from transfer_jax.tasks.kind import ClassNames, TaskKind
from transfer_jax.tasks.metric import Batch, Metric, Result, State, count_of, empty_count, joined_count, present, ratio

ALPHAS = (0.05, 0.1, 0.2)  # of the longer side of the image
SHARES = ("pck_05", "pck_10", "pck_20")


def one_per_point(names: ClassNames) -> int:
    """A heat map for every point."""
    if not names:
        raise UserError("the keypoints task knows no points: its stream shows no 'keypoints'; set "
                        "targets=('keypoints',) in the stream, of data that have them")
    return len(names)


def _centres(length: int) -> jax.Array:
    """Where the middles of pixels lie in units of the image."""
    return (jnp.arange(length, dtype=jnp.float32) + 0.5) / length


def _places(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [B, H, W, K] -> mean places float32 [B, K, 2] (x, y), and log-softmax [B, K, H, W]."""
    logits = jnp.moveaxis(outputs.astype(jnp.float32), -1, 1)
    flat = jax.nn.log_softmax(logits.reshape(*logits.shape[:2], -1)).reshape(logits.shape)
    heat = jnp.exp(flat)
    x, y = (jnp.sum(heat.sum(axis) * _centres(logits.shape[5 - axis]), -1) for axis in (2, 3))
    return jnp.stack([x, y], -1), flat


def predict_points(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logits [B, H, W, K] -> prediction float32 [B, K, 3]: x, y, and the share of the heat map within a pixel of them
    (1: all of it, sure; near 0: spread out)."""
    place, logs = _places(outputs)
    size = outputs.shape[2], outputs.shape[1]
    near = [jnp.abs(_centres(length) - place[..., axis, None]) * length <= 1.5 for axis, length in enumerate(size)]
    share = jnp.einsum("bkhw,bkh,bkw->bk", jnp.exp(logs), jnp.float32(near[1]), jnp.float32(near[0]))
    return {"prediction": jnp.concatenate([place, share[..., None]], -1)}


def _check(name: str, outputs: jax.Array, labels: jax.Array) -> None:
    if outputs.ndim != 4 or labels.shape != (outputs.shape[0], outputs.shape[-1], 3):
        raise UserError(f"{name} needs outputs [B, H, W, points] and keypoints [B, points, 3], got {outputs.shape} and "
                        f"{labels.shape}; check the task's head and label")


def integral_regression(logits: jax.Array, labels: jax.Array, weights: jax.Array, *, heat: float = 1.0,
                        sigma: float = 1.0) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L1 distance of the mean place, in units of the image (Sun et al. 2018), plus `heat` times the Kullback-Leibler
    divergence of the heat map from a Gaussian around the point, both means over all known points of the batch.

    The second part teaches the map to be narrow, as the losses of heat maps do that Sun et al. add.

    Args:
      logits: float [B, H, W, K].
      labels: float [B, K, 3].
      weights: float [B].
      heat: weight of the second part; 0 leaves the first.
      sigma: of the Gaussian, in pixels of the output.

    Returns:
      The sum, and both parts.
    """
    _check("integral_regression", logits, labels)
    if heat < 0 or sigma <= 0:
        raise UserError(f"heat = {heat} and sigma = {sigma} of integral_regression do not fit: give numbers >= 0 and "
                        f"> 0")
    place, logs = _places(logits)
    known = (labels[..., 2] > 0).astype(jnp.float32)
    distance = jnp.abs(place - labels[..., :2]).sum(-1)
    along = [_gaussian(labels[..., axis, None], length, sigma) for axis, length in enumerate(logs.shape[:1:-1])]
    target = along[1][..., :, None] * along[0][..., None, :]
    excess = jnp.sum(target * (jnp.log(jnp.maximum(target, 1e-30)) - logs), (2, 3))
    parts = {"place": weighted_mean(distance * known, weights, known),
             "heat": weighted_mean(excess * known, weights, known)}
    return parts["place"] + heat * parts["heat"], parts


def _gaussian(middle: jax.Array, length: int, sigma: float) -> jax.Array:
    """[..., 1] -> [..., length], sums to 1: a normal distribution over the pixels of an axis."""
    return jax.nn.softmax(-0.5 * ((_centres(length) - middle) * length / sigma) ** 2)


def _distances(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Pixels between answer and point, [B, K]."""
    _check("keypoints", outputs, labels)
    place, _ = _places(outputs)
    return jnp.linalg.norm((place - labels[..., :2]) * jnp.float32([outputs.shape[2], outputs.shape[1]]), axis=-1)


def error_of_image(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """float32 [B]: mean distance in pixels over the known points of an image; 0 without one."""
    known = labels[..., 2] > 0
    return jnp.where(known, _distances(outputs, labels), 0).sum(-1) / jnp.maximum(known.sum(-1), 1)


def _measure(outputs: jax.Array, batch: Batch) -> State:
    labels = batch["label"]
    distances = _distances(outputs, labels)
    known = (labels[..., 2] > 0) & present(labels, batch)[:, None]
    side = max(outputs.shape[1:3])
    return {"sum": jnp.sum(jnp.where(known, distances, 0.0)), "points": count_of(known),
            **{name: count_of(known & (distances <= alpha * side))
               for name, alpha in zip(SHARES, ALPHAS, strict=True)}}


def _compute(state: State) -> Result:
    points = joined_count(state["points"])
    return {"point_error": float(ratio(state["sum"], points)),
            **{name: float(ratio(joined_count(state[name]), points)) for name in SHARES}}


# PCK@alpha: the share of points within alpha of the longer side of the image (Yang & Ramanan 2013, with the image in
# place of the box around the object); `point_error`: mean distance in pixels of the output.
PCK = Metric(lambda outputs: {"sum": jnp.zeros((), jnp.float32), "points": empty_count(),
                              **{name: empty_count() for name in SHARES}},
             _measure, _compute, {**dict.fromkeys(SHARES, "max"), "point_error": "min"})

KEYPOINTS = TaskKind(
    label="keypoints", loss=Component(kind="integral_regression"), outputs=one_per_point, predict=predict_points,
    metrics=("pck",), terms={"integral_regression": integral_regression},
    measures={"pck": PCK, "keypoint_average_precision": KEYPOINT_AVERAGE_PRECISION}, reads=("place",),
    error=error_of_image, names="keypoint_names", answers="points")
