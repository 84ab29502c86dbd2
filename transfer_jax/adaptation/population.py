"""Statistics of batch normalisation that come from a pass over unlabelled target examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transfer_jax.core.paths import flatten, unflatten


def population(stored: Mapping[str, Any], moments: list[Mapping[str, Any]], batch_size: int, *,
               prior: float = 0.0) -> dict[str, Any]:
    """Means and variances of all examples from those of batches of one size, mixed with the stored ones.

    (N stored + n found) / (N + n) with N = `prior` pseudo-examples and n found ones (Schneider et al. 2020, eq. 3);
    N = 0 is AdaBN (Li et al. 2016). The variance of all is the mean of the batches' variances plus the variance of
    their means. Computed in float64.

    Args:
      stored: tree of `mean` and `var`, of any leading axes; leaves that no batch has stay.
      moments: the same tree, or a part of it, for every batch.
      batch_size: examples of a batch.
      prior: N >= 0.
    """
    found = [flatten(jax.device_get(part)) for part in moments]
    share = prior / (prior + batch_size * len(found))
    kept = dict(flatten(stored))
    for path in found[0]:
        kind = path.rpartition("/")[2]
        values = np.asarray([part[path] for part in found], np.float64)
        value = values.mean(0)
        if kind == "var":
            value += np.asarray([part[path.removesuffix(kind) + "mean"] for part in found], np.float64).var(0)
        old = np.asarray(kept[path], np.float64)
        kept[path] = (share * old + (1 - share) * value).astype(np.float32)
    return unflatten(kept)
