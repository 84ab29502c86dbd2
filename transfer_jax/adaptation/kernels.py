"""Gaussian kernels, and the scale at which they look."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import pdist

MOST = 2000  # rows whose mutual distances tell the scale of all
FACTORS = tuple(2.0 ** np.arange(-3, 3.5, 0.5))  # bandwidths that are tried, in medians of the distances


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """[n, m] between rows of x [n, d] and y [m, d]; never below 0."""
    # Distances do not change when both move; near the origin the differences of squares lose least.
    center = jnp.mean(y, axis=0)
    x, y = x - center, y - center
    return jnp.maximum((x ** 2).sum(1)[:, None] + (y ** 2).sum(1) - 2 * x @ y.T, 0)


def gaussian(distances: jax.Array, bandwidth: jax.Array | float) -> jax.Array:
    """exp(-distance^2 / (2 bandwidth^2)) of squared distances."""
    return jnp.exp(-distances / (2 * bandwidth ** 2))


def median_distance(source: np.ndarray, target: np.ndarray) -> float:
    """The median of the distances above 0 between examples of both domains; 0 where all are equal."""
    both = np.concatenate([source, target])
    distances = pdist(both[np.unique(np.linspace(0, len(both) - 1, MOST).astype(int))])
    positive = distances[distances > 1e-12 * max(np.abs(both).max(), np.finfo(float).tiny)]
    return float(np.median(positive)) if len(positive) else 0.0
