"""Which of several models answers best on a target without labels? Scores for choosing among them.

Every score is a pure function of arrays, computed in float64. None reads a label of the target: `Evidence`, all that a
validator of the registry gets, has no place for them. In the registry larger is better; risks and distances have
a minus sign there. None is reliable alone (Musgrave et al. 2022), so the report shows what each choice costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, xlogy

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.evaluation.classifiers import unit
from transfer_jax.evaluation.domains import TOLERANCE, DomainClassifier, classify_domains
from transfer_jax.evaluation.logistic import logistic_path
from transfer_jax.evaluation.probes import standardised

Array = np.ndarray
REVERSE_PENALTY = 0.01  # of the mean loss; there are no labels to choose it by


def source_accuracy(logits: Array, labels: Array) -> float:
    """Share of right answers on held-out source examples; logits [N, C], labels int [N]."""
    return float(np.mean(_finite(logits, "source logits").argmax(1) == _labels(labels, logits)))


def cross_entropies(logits: Array, labels: Array) -> Array:
    """-log p(label) of each example, float64 [N]; logits [N, C], labels int [N]."""
    logs = log_softmax(_finite(logits, "source logits"), axis=1)
    return -logs[np.arange(len(logs)), _labels(labels, logits)]


def importance_weighted_risk(losses: Array, weights: Array) -> float:
    """mean(w l): the target's risk from source losses [N] and density ratios [N] (IWCV, Sugiyama et al. 2007).

    Where the domains are told apart all ratios are near 0, and so is this; `control_variate_risk` is not.
    """
    losses, weights = _weighted(losses, weights)
    return float(np.mean(weights * losses))


def control_variate_risk(losses: Array, weights: Array) -> float:
    """mean(w l) + eta mean(w) - eta: since E[w] = 1, what the mean of the weights misses tells what the other mean
    misses (DEV, You et al. 2019), with eta = -Cov(w l, w) / Var(w), which has the least variance.

    It is the line through (w, w l), read at w = 1. Weights that are equal within a thousandth tell nothing, whatever
    their level, and have no such line: the mean loss.
    """
    losses, weights = _weighted(losses, weights)
    weighted = weights * losses
    variance = weights.var(ddof=1) if len(weights) > 1 else 0.0
    if variance <= 1e-6 * np.mean(weights ** 2):
        return float(losses.mean())
    eta = -float(np.cov(weighted, weights, ddof=1)[0, 1]) / variance
    return float(weighted.mean() + eta * weights.mean() - eta)


def soft_neighborhood_density(probabilities: Array, temperature: float = 0.05, block: int = 512) -> float:
    """Mean entropy of the similarities to all other examples (SND, Saito et al. 2021).

    Cosines of the class probabilities [N, C], divided by the temperature, become a distribution over the other
    N - 1 examples by a softmax along each row, without the example itself. At most log(N - 1), which a model that gives
    everything the same answer also reaches. Memory: `block` rows of N.
    """
    p = _probabilities(probabilities, least=2)
    p, total = unit(p), 0.0
    for start in range(0, len(p), block):
        logits = p[start:start + block] @ p.T / temperature
        rows = np.arange(len(logits))
        logits[rows, start + rows] = -np.inf
        logs = log_softmax(logits, axis=1)
        shares = np.exp(logs)
        logs[rows, start + rows] = 0.0  # no share, no entropy: 0 * -inf is NaN
        total -= float((shares * logs).sum())
    return total / len(p)


def mean_entropy(probabilities: Array) -> float:
    """Mean entropy of the rows of class probabilities [N, C], in nats (Morerio et al. 2018 choose by its minimum)."""
    p = _probabilities(probabilities)
    return float(-xlogy(p, p).sum(1).mean())


def information(probabilities: Array) -> float:
    """H(mean of p) - mean of H(p), the mutual information of examples and answers (Krause et al. 2010): sure
    answers, spread over the classes."""
    p = _probabilities(probabilities)
    mean = p.mean(0)
    return float(-xlogy(mean, mean).sum()) - mean_entropy(p)


def batch_nuclear_norm(probabilities: Array) -> float:
    """Sum of the singular values of the probabilities [N, C], over N (BNM, Cui et al. 2020); at most
    sqrt(min(N, C) / N). Compare only over equally many examples."""
    p = _probabilities(probabilities)
    return float(np.linalg.svd(p, compute_uv=False).sum() / len(p))


def reverse_accuracy(source_features: Array, source_labels: Array, target_features: Array, answers: Array,
                     classes: int) -> float:
    """Accuracy on the source of a logistic regression fitted to the target's features and the model's answers there
    (reverse or circular validation, Zhong et al. 2010): answers that mean what the source's labels mean lead back.

    Args:
        source_features, target_features: float [N, D] and [M, D]; standardised by the target's mean and scale.
        source_labels, answers: int [N] and [M], below `classes`. Equal answers everywhere give the share of that class.
    """
    labels, answers = np.asarray(source_labels), np.asarray(answers)
    for name, rows in (("source", source_features), ("target", target_features)):
        _finite(rows, f"{name} features")
    if (answers == answers[0]).all():
        return float(np.mean(labels == answers[0]))
    x = standardised(np.concatenate([target_features, source_features]).astype(np.float32), len(target_features))
    fitted, asked = x[:len(target_features)], x[len(target_features):].astype(np.float64)
    path = logistic_path(fitted, answers, classes, np.array([REVERSE_PENALTY]), tolerance=TOLERANCE)
    votes = asked @ np.asarray(path.weights, np.float64)[0, 0] + np.asarray(path.bias, np.float64)[0, 0]
    votes[:, np.setdiff1d(np.arange(classes), answers)] = -np.inf
    return float(np.mean(votes.argmax(1) == labels))


@dataclass(frozen=True)
class Evidence:
    """What a model makes of held-out labelled source examples and of unlabelled target examples; None: not known.

    Attributes:
        source_features, target_features: float [N, D] and [M, D].
        source_logits, target_logits: float [N, C] and [M, C].
        source_labels: int [N].
    """

    target_features: Array | None = None
    target_logits: Array | None = None
    source_features: Array | None = None
    source_logits: Array | None = None
    source_labels: Array | None = None

    @functools.cached_property
    def probabilities(self) -> Array:
        """Class probabilities of the target, float64 [M, C]."""
        return np.exp(log_softmax(_finite(self.target_logits, "target logits"), axis=1))

    @functools.cached_property
    def domains(self) -> DomainClassifier:
        return classify_domains(self.source_features, self.target_features)

    @functools.cached_property
    def losses(self) -> Array:
        """Cross-entropies of the source, float64 [N]."""
        return cross_entropies(self.source_logits, self.source_labels)


@dataclass(frozen=True)
class Validator:
    """A score, larger is better, and the fields of `Evidence` that it needs."""

    score: Callable[[Evidence], float]
    needs: tuple[str, ...]


def _dev(evidence: Evidence) -> float:
    """Minus the risk; a mean of losses cannot lie outside of them, whatever a few large weights say."""
    risk = control_variate_risk(evidence.losses, evidence.domains.weights())
    return -float(np.clip(risk, evidence.losses.min(), evidence.losses.max()))


_SOURCE = ("source_logits", "source_labels")
_FEATURES = ("source_features", "target_features")
_TARGET = ("target_logits",)
VALIDATORS: dict[str, Validator] = {
    "source_accuracy": Validator(lambda e: source_accuracy(e.source_logits, e.source_labels), _SOURCE),
    "iwcv": Validator(lambda e: -importance_weighted_risk(e.losses, e.domains.weights()), _SOURCE + _FEATURES),
    "dev": Validator(_dev, _SOURCE + _FEATURES),
    "snd": Validator(lambda e: soft_neighborhood_density(e.probabilities), _TARGET),
    "entropy": Validator(lambda e: 0.0 - mean_entropy(e.probabilities), _TARGET),
    "information": Validator(lambda e: information(e.probabilities), _TARGET),
    "bnm": Validator(lambda e: batch_nuclear_norm(e.probabilities), _TARGET),
    "reverse": Validator(lambda e: reverse_accuracy(e.source_features, e.source_labels, e.target_features,
                                                    e.target_logits.argmax(1), e.target_logits.shape[1]),
                         _FEATURES + _TARGET + ("source_labels",)),
    "a_distance": Validator(lambda e: 0.0 - e.domains.distance, _FEATURES),
}


def usable(names: Sequence[str], source: bool) -> tuple[str, ...]:
    """The validators of these names, or (none named) all that go with or without a labelled source stream.

    Raises:
        UserError: a name that there is not, or one that needs a source where there is none.
    """
    for name in names:
        if name not in VALIDATORS:
            raise unknown("validator", name, VALIDATORS)
    free = [name for name, validator in VALIDATORS.items()
            if source or not any(need.startswith("source") for need in validator.needs)]
    for name in names:
        if name not in free:
            raise UserError(f"the validator {name!r} needs labelled examples of the source; name a held-out stream of "
                            f"it, or leave the validator out")
    return tuple(names) or tuple(free)


def validate(evidence: Evidence, names: Sequence[str]) -> dict[str, float]:
    """Scores by name, larger is better; never NaN.

    Raises:
        UserError: evidence that a validator needs is missing, empty or not finite.
    """
    for name in names:
        for need in VALIDATORS[name].needs:
            if getattr(evidence, need) is None or not len(getattr(evidence, need)):
                raise UserError(f"the validator {name!r} needs {need.replace('_', ' ')}, but there are none; give a "
                                f"stream with examples")
    return {name: VALIDATORS[name].score(evidence) for name in names}


def _finite(values: Array, what: str) -> Array:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values):
        raise UserError(f"{what} [n, columns] of one example or more are needed, got the shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise UserError(f"{what} are not finite, so that nothing can be validated; check the weights and the "
                        f"normalisation of the stream")
    return values


def _probabilities(values: Array, least: int = 1) -> Array:
    values = _finite(values, "class probabilities")
    if len(values) < least:
        raise UserError(f"soft neighbourhoods need {least} examples or more, got {len(values)}")
    if values.min() < 0 or np.abs(values.sum(1) - 1).max() > 1e-4:
        raise UserError("class probabilities must not be negative and sum to 1 in each row; give a softmax")
    return values


def _labels(labels: Array, logits: Array) -> Array:
    labels = np.asarray(labels)
    if labels.shape != logits.shape[:1] or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(f"labels must be whole numbers below {logits.shape[1]}, one for each of {len(logits)} examples")
    return labels


def _weighted(losses: Array, weights: Array) -> tuple[Array, Array]:
    losses, weights = np.asarray(losses, np.float64), np.asarray(weights, np.float64)
    if losses.shape != weights.shape or losses.ndim != 1 or not len(losses):
        raise UserError(f"a weighted risk needs losses and weights of the same examples, got the shapes "
                        f"{list(losses.shape)} and {list(weights.shape)}")
    if not (np.isfinite(losses).all() and np.isfinite(weights).all()) or weights.min() < 0:
        raise UserError("losses and weights must be finite, and weights not negative")
    return losses, weights
