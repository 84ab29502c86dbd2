"""Depth: a positive distance for every pixel. The head answers with its logarithm, so that every answer is positive.

Labels are float32 [B, H, W], 0 where nobody knows; such pixels count nowhere.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import TaskKind, one_number
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
    spread,
)

FARTHEST = 50.0  # of the logarithm, beyond which its exponential says nothing
RATIO = 1.25  # the unit of delta1, delta2 and delta3


def predict_depth(outputs: jax.Array) -> dict[str, jax.Array]:
    """Logarithms [B, H, W, 1] -> prediction float32 [B, H, W], distances."""
    return {"prediction": jnp.exp(_logarithms(outputs))}


def _logarithms(outputs: jax.Array) -> jax.Array:
    return jnp.clip(outputs[..., 0].astype(jnp.float32), -FARTHEST, FARTHEST)


def _differences(name: str, outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log answer - log depth [B, H, W], 0 where it is not known, and whether it is."""
    if labels.ndim != 3 or outputs.shape != (*labels.shape, 1):
        raise UserError(f"{name} needs outputs [B, H, W, 1] and depths [B, H, W], got {outputs.shape} and "
                        f"{labels.shape}; check the task's head and label")
    known = labels > 0
    return jnp.where(known, _logarithms(outputs) - jnp.log(jnp.where(known, labels, 1.0)), 0.0), known


def scale_invariant_log(logits: jax.Array, labels: jax.Array, weights: jax.Array, *,
                        invariance: float = 0.5) -> jax.Array:
    """mean d^2 - lambda (mean d)^2 over the known pixels of an image, d the difference of logarithms (Eigen, Puhrsch &
    Fergus 2014, equation 4), mean over images that have one. With lambda = 1 a factor on all depths costs nothing.

    Args:
      logits: float [B, H, W, 1], logarithms of depths.
      labels: float [B, H, W].
      weights: float [B].
      invariance: lambda in [0, 1].
    """
    if not 0 <= invariance <= 1:
        raise UserError(f"invariance = {invariance} of scale_invariant_log does not fit: give a number in [0, 1]")
    difference, known = _differences("scale_invariant_log", logits, labels)
    return weighted_mean(_scale_invariant(difference, known, invariance), weights * jnp.any(known, (1, 2)))


def _scale_invariant(difference: jax.Array, known: jax.Array, invariance: float) -> jax.Array:
    """float32 [B]."""
    number = jnp.maximum(jnp.sum(known, (1, 2)), 1)
    return jnp.sum(difference**2, (1, 2)) / number - invariance * (jnp.sum(difference, (1, 2)) / number) ** 2


def absolute_depth(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """|answer - depth| (L1), mean over all known pixels of the batch; arguments as in `scale_invariant_log`."""
    _, known = _differences("absolute_depth", logits, labels)
    errors = jnp.where(known, jnp.abs(jnp.exp(_logarithms(logits)) - labels), 0.0)
    return weighted_mean(errors, weights, known.astype(jnp.float32))


def error_of_image(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """float32 [B]: mean |log answer - log depth| over the known pixels of an image; 0 without one."""
    difference, known = _differences("depth", outputs, labels)
    return jnp.sum(jnp.abs(difference), (1, 2)) / jnp.maximum(jnp.sum(known, (1, 2)), 1)


SUMS = ("relative", "square", "log_square")
COUNTS = ("pixels", "delta1", "delta2", "delta3")
BETTER = {"abs_rel_error": "min", "depth_rmse": "min", "log_depth_rmse": "min", "delta1": "max", "delta2": "max",
          "delta3": "max"}


def _measure(outputs: jax.Array, batch: Batch) -> State:
    labels = batch["label"]
    difference, known = _differences("depth_errors", outputs, labels)
    known &= spread(present(labels, batch), labels.shape)
    answer, depth = jnp.exp(_logarithms(outputs)), jnp.where(known, labels, 1.0)
    parts = {"relative": jnp.abs(answer - depth) / depth, "square": (answer - depth) ** 2, "log_square": difference**2}
    found: State = {name: jnp.sum(jnp.where(known, value, 0.0)) for name, value in parts.items()}
    factor = jnp.maximum(answer / depth, depth / answer)
    return found | {"pixels": count_of(known)} | {f"delta{k}": count_of(known & (factor < RATIO**k)) for k in (1, 2, 3)}


def _compute(state: State) -> Result:
    """Over all known pixels of the stream, as Eigen et al. define them."""
    pixels = joined_count(state["pixels"])
    mean = {name: float(ratio(state[name], pixels)) for name in SUMS}
    return {"abs_rel_error": mean["relative"], "depth_rmse": float(np.sqrt(mean["square"])),
            "log_depth_rmse": float(np.sqrt(mean["log_square"])),
            **{name: float(ratio(joined_count(state[name]), pixels)) for name in COUNTS[1:]}}


DEPTH_ERRORS = Metric(lambda outputs: {**{name: jnp.zeros((), jnp.float32) for name in SUMS},
                                       **{name: empty_count() for name in COUNTS}}, _measure, _compute, BETTER)

DEPTH = TaskKind(
    label="depth", loss=Component(kind="scale_invariant_log"), outputs=one_number, predict=predict_depth,
    metrics=("depth_errors",), has_classes=False,
    terms={"scale_invariant_log": scale_invariant_log, "absolute_depth": absolute_depth},
    measures={"depth_errors": DEPTH_ERRORS}, error=error_of_image, answers="depths")
