"""What all importance weights have in common: how they end, and what is told of them."""

from __future__ import annotations

import jax
import numpy as np

from transfer_jax.core.errors import UserError

Array = np.ndarray
Weighted = tuple[Array, dict[str, float]]


def finished(ratios: Array, **metrics: float) -> Weighted:
    """Weights float64 [n_s], not negative and with mean one, and metrics.

    Among these is `effective_share`, the effective number of examples (sum w)^2 / sum w^2 (Kish 1965) as a share of
    all, and `largest`, the largest weight.
    """
    ratios = np.maximum(np.asarray(ratios, np.float64), 0)
    mean = ratios.mean()
    if not np.isfinite(mean) or mean <= 0:
        raise UserError("no example of the source is like any of the target, so no weights can be found; standardise "
                        "the features, or give a larger bandwidth")
    weights = ratios / mean
    return weights, {**{name: float(value) for name, value in metrics.items()},
                     "effective_share": float(1 / (weights ** 2).mean()), "largest": float(weights.max())}


def equal_weights(count: int) -> Weighted:
    """Where no example differs from any other in either domain, the ratio of their densities is one."""
    return finished(np.ones(count), bandwidth=0.0)


def shuffled(rows: int, key: jax.Array | None) -> Array:
    """A permutation of the rows: that of the key, or none without one."""
    return np.arange(rows) if key is None else np.asarray(jax.random.permutation(key, rows))


def positive(name: str, value: float | None) -> None:
    """A UserError for a setting that is given and not above 0."""
    if value is not None and not value > 0:
        raise UserError(f"{name} is {value}; give a number above 0")
