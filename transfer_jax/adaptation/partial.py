"""Source classes that the target does not have."""

from __future__ import annotations

import numpy as np

from transfer_jax.adaptation.weighting import Array, Weighted, finished


def class_shares(target_probabilities: Array, source_labels: Array) -> Weighted:
    """The weight of a source example is the mean probability that the target's examples give to its class, so that
    classes which the target lacks count for little (PADA; Cao, Ma, Long & Wang 2018, eq. 3).

    Args:
        target_probabilities: [n_t, K], the classifier's on the target.
        source_labels: int [n_s].

    Returns:
        Weights float64 [n_s] with mean one (the paper divides by the largest instead), and metrics: `largest_share` and
        `smallest_share` of a class.
    """
    shares = np.asarray(target_probabilities, np.float64).mean(0)
    return finished(shares[np.asarray(source_labels)], largest_share=shares.max(), smallest_share=shares.min())
