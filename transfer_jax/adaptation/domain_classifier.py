"""Importance weights from a classifier that tells the domains apart."""

from __future__ import annotations

import jax
import numpy as np

from transfer_jax.adaptation.domains import two_domains
from transfer_jax.adaptation.weighting import Array, Weighted, finished
from transfer_jax.core.errors import UserError
from transfer_jax.evaluation.domains import FOLDS, classify_domains


def domain_classifier(source: Array, target: Array, key: jax.Array | None = None, *, folds: int = FOLDS,
                      largest: float = 100.0) -> Weighted:
    """w(x) = p(target|x) / p(source|x) * n_s / n_t of logistic regression on standardised features (Bickel, Brueckner
    and Scheffer 2009).

    The probability of each example comes from a model that was not fitted to it, or features as many as examples would
    tell any two samples apart.

    Args:
        source, target: [n_s, d] and [n_t, d], two examples or more each.
        key: draws the folds; None: 0.
        largest: ratios are cut to [1/largest, largest].

    Returns:
        Weights float64 [n_s] with mean one, and metrics: accuracy (of telling the domains apart, balanced: 0.5 means
        they are alike).
    """
    if not largest > 1:
        raise UserError(f"the largest ratio is {largest}; give a number above 1")
    source, target = two_domains(source, target)
    found = classify_domains(source, target, folds, 0 if key is None else int(jax.random.bits(key)) % 2 ** 31)
    return finished(np.exp(np.clip(found.source, -np.log(largest), np.log(largest))), accuracy=1 - found.error)
