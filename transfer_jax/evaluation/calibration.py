"""Calibration: does a prediction of confidence c come true with probability c? And the temperature that makes it so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation.metrics import (
    Batch,
    Metric,
    Result,
    State,
    empty_count,
    joined_count,
    ratio,
    scored,
    split_count,
)


def calibration_metric(bins: int = 15) -> Metric:
    """Expected calibration error over bins ((m - 1) / M, m / M] of equal width (Guo et al. 2017, eq. 3).

    Results: `calibration_error` and, of the reliability diagram, `bin_count` int64 [M], `bin_confidence` and
    `bin_accuracy` float64 [M] (NaN in empty bins).
    """

    def empty(num_classes: int) -> State:
        del num_classes
        return {"confidence": jnp.zeros(bins, jnp.float32), "hits": empty_count(bins), "count": empty_count(bins)}

    def measure(outputs: jax.Array, batch: Batch) -> State:
        scores, labels, counted = scored(outputs, batch)
        confidence = jnp.max(jax.nn.softmax(scores), axis=-1)
        bin_of = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
        hits = counted & (jnp.argmax(scores, axis=-1) == labels)

        def by_bin(values: jax.Array) -> jax.Array:
            return jnp.zeros(bins, values.dtype).at[bin_of].add(values)

        return {"confidence": by_bin(jnp.where(counted, confidence, 0.0)),
                "hits": split_count(by_bin(hits.astype(jnp.int32))),
                "count": split_count(by_bin(counted.astype(jnp.int32)))}

    return Metric(empty, measure, _compute, {"calibration_error": "min"})


def _compute(state: State) -> Result:
    count, hits = joined_count(state["count"]), joined_count(state["hits"])
    confidence = np.asarray(state["confidence"], np.float64)
    error = ratio(np.abs(confidence - hits).sum(), count.sum())
    return {"calibration_error": float(error), "bin_count": count, "bin_confidence": ratio(confidence, count),
            "bin_accuracy": ratio(hits, count)}


def fit_temperature(logits: np.ndarray, labels: np.ndarray, lowest: float = 1e-2, highest: float = 1e2) -> float:
    """The T > 0 of the highest likelihood of softmax(z / T): temperature scaling (Guo et al. 2017, section 4.2).

    The likelihood is concave in 1 / T, so its slope has at most one root.

    Args:
      logits: z, float [N, K], of examples that were not trained on.
      labels: int [N].
      lowest, highest: T is between them.

    Raises:
      UserError: where there is no best T, as all answers are right or none better than chance.
    """
    from scipy.optimize import brentq  # they would take their time at every start of a command
    from scipy.special import softmax

    z = np.asarray(logits, np.float64)
    right = np.take_along_axis(z, np.asarray(labels)[:, None], 1)[:, 0]

    def slope(inverse: float) -> float:
        return float(np.mean(right - (softmax(z * inverse, axis=1) * z).sum(1)))

    if slope(1 / highest) <= 0 or slope(1 / lowest) >= 0:
        why = "no better than chance" if slope(1 / highest) <= 0 else "all right, or nearly so"
        raise UserError(f"no temperature between {lowest:g} and {highest:g} fits the {len(z)} predictions, which are "
                        f"{why}; take examples of the task that the head was trained for, but that it has not seen, or "
                        f"give the temperature as a number")
    return 1 / brentq(slope, 1 / highest, 1 / lowest, xtol=1e-12)
