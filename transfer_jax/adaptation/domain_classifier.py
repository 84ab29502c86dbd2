"""Importance weights from a classifier that tells the domains apart."""

from __future__ import annotations

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from transfer_jax.adaptation.domains import two_domains
from transfer_jax.adaptation.kernels import median_distance
from transfer_jax.adaptation.weighting import Array, Weighted, equal_weights, finished
from transfer_jax.core.errors import UserError


def domain_classifier(source: Array, target: Array, key: jax.Array | None = None, *, folds: int = 5,
                      largest: float = 100.0, penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)) -> Weighted:
    """w(x) = p(target|x) / p(source|x) * n_s / n_t of logistic regression on standardised features (Bickel, Brueckner
    and Scheffer 2009).

    The probability of each example comes from a model that was not fitted to it, or features as many as examples would
    tell any two samples apart; the penalty is chosen by cross-validated likelihood inside.

    Args:
        source, target: [n_s, d] and [n_t, d], two examples or more each.
        key: draws the folds; None: 0.
        largest: ratios are cut to [1/largest, largest].
        penalties: of scikit-learn's `LogisticRegression(C=1 / penalty)` on features with mean 0 and variance 1; with
            two examples in a domain none can be chosen, and it is 1.

    Returns:
        Weights float64 [n_s] with mean one, and metrics: accuracy (of telling the domains apart, balanced: 0.5 means
        they are alike).
    """
    source, target = two_domains(source, target)
    folds = min(folds, len(source), len(target))
    if folds < 2:
        raise UserError("a domain classifier needs two examples or more of each domain; give more, or use rulsif")
    if not largest > 1:
        raise UserError(f"the largest ratio is {largest}; give a number above 1")
    if median_distance(source, target) == 0:
        return equal_weights(len(source))
    both = np.concatenate([source, target])
    deviation = both.std(0)
    both = (both - both.mean(0)) / np.where(deviation > 0, deviation, 1)
    domain = np.repeat([0, 1], [len(source), len(target)])
    splits = StratifiedKFold(folds, shuffle=True, random_state=_seed(key))
    fewest = min(len(source), len(target))
    inside = min(folds, fewest - -(-fewest // folds))  # of the smaller domain, as many are fitted to at least
    if inside < 2:
        model = LogisticRegression(C=1.0, max_iter=2000)
    else:
        model = LogisticRegressionCV(Cs=[1 / penalty for penalty in penalties], cv=inside, scoring="neg_log_loss",
                                     l1_ratios=(0.0,), use_legacy_attributes=False, max_iter=2000)
    logits = cross_val_predict(model, both, domain, cv=splits, method="decision_function")
    prior = np.log(len(source) / len(target))
    right = [(logits[domain == 0] < -prior).mean(), (logits[domain == 1] > -prior).mean()]
    ratios = np.exp(np.clip(logits[:len(source)] + prior, -np.log(largest), np.log(largest)))
    return finished(ratios, accuracy=np.mean(right))


def _seed(key: jax.Array | None) -> int:
    return 0 if key is None else int(jax.random.bits(key)) % 2 ** 31
