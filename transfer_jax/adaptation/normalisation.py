"""How features of two domains are scaled before anything else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transfer_jax.adaptation.domains import Array, two_domains
from transfer_jax.core.errors import unknown


def _row_sum(x: Array) -> Array:
    total = x.sum(1, keepdims=True)
    return x / np.where(total == 0, 1, total)


def unit(x: Array) -> Array:
    """Rows of length one; rows of zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)


def _standardised(x: Array, by: Array) -> Array:
    scale = by.std(0)
    varies = scale > 1e-12 * np.maximum(np.abs(by).max(0), np.finfo(float).tiny)
    return np.where(varies, (x - by.mean(0)) / np.where(varies, scale, 1), 0)


def _each(step):
    return lambda source, target: (step(source), step(target))


def _together(source: Array, target: Array) -> tuple[Array, Array]:
    both = np.concatenate([source, target])
    return _standardised(source, both), _standardised(target, both)


NORMALISATIONS = {
    "none": _each(lambda x: x),
    "row-sum": _each(_row_sum),
    "unit": _each(unit),
    "log": _each(lambda x: np.sign(x) * np.log1p(np.abs(x))),
    "zscore": _together,
    "zscore-source": lambda source, target: (_standardised(source, source), _standardised(target, source)),
    "zscore-per-domain": _each(lambda x: _standardised(x, x)),
}


def normalised(source: Array, target: Array, steps: Sequence[str] = ("zscore-per-domain",)) -> tuple[Array, Array]:
    """Both domains, [n_s, d] and [n_t, d], after the steps in their order.

    Steps are row-sum (rows sum to one), unit (rows of length one), log (log(1 + |x|), with its sign), zscore (mean 0
    and variance 1 over both domains together), zscore-source (by the source's), zscore-per-domain (each by its own),
    none. Columns that do not vary become 0.
    """
    source, target = two_domains(source, target)
    for step in steps:
        if step not in NORMALISATIONS:
            raise unknown("normalisation", step, NORMALISATIONS)
        source, target = NORMALISATIONS[step](source, target)
    return two_domains(source, target)
