"""A classifier for the target from labels of the source, by any of the methods: fit, transform, predict."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from collections.abc import Mapping as Options
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from transfer_jax.adaptation import BOOSTING, MAPPINGS, WEIGHTS
from transfer_jax.adaptation.base_classifiers import check_weighted, fitted
from transfer_jax.adaptation.boosting import tradaboost
from transfer_jax.adaptation.domains import (
    UNKNOWN,
    Array,
    Problem,
    checked_features,
    checked_labels,
    classes_of,
    two_domains,
)
from transfer_jax.adaptation.mapping import Mapping, identity
from transfer_jax.core.errors import UserError, unknown

METHODS = (*MAPPINGS, *WEIGHTS, *BOOSTING)
SUPERVISED = ("augmentation", *BOOSTING)  # of use only with some target labels


@dataclass(frozen=True)
class Fitted:
    """What `AdaptedClassifier.fit` found.

    Attributes:
        classes: [C], those of the source.
        mapping: of the features; the identity for methods that weight.
        model: answers places in `classes`.
        width: features of an example.
        weights: float64 [n_s] of the source examples, for methods that weight.
        metrics: of the weights.
    """

    classes: Array
    mapping: Mapping
    model: Any
    width: int
    weights: Array | None = None
    metrics: Options[str, float] = field(default_factory=dict)

    def transform(self, x: Array, domain: str = "target") -> Array:
        """[n, d] -> [n, k], in the space where the classifier works."""
        x = checked_features(x, domain)
        if x.shape[1] != self.width:
            raise UserError(f"examples have {x.shape[1]} features; the classifier was fitted to {self.width}")
        maps = {"source": self.mapping.of_source, "target": self.mapping.of_target}
        if domain not in maps:
            raise unknown("domain", domain, maps)
        return maps[domain](x)

    def predict(self, x: Array, domain: str = "target") -> Array:
        """[n, d] -> [n], labels as those of the source."""
        return self.classes[self.model.predict(self.transform(x, domain))]


@dataclass(frozen=True)
class AdaptedClassifier:
    """A method and its base classifier.

    Attributes:
        method: a name of `MAPPINGS` (features are moved), `WEIGHTS` (source examples are weighted) or `BOOSTING`.
        classifier: nn1, logistic or svm; weights need one of the latter two.
        c: of logistic and svm, as in scikit-learn.
        seed: of what a method draws.
        options: keyword arguments of the method.
    """

    method: str = "none"
    classifier: str = "nn1"
    c: float = 1.0
    seed: int = 0
    options: Options[str, Any] = field(default_factory=dict)

    def fit(self, source: Array, source_labels: Array, target: Array, target_labels: Array | None = None) -> Fitted:
        """Adapts and trains.

        Args:
            source, target: [n_s, d], [n_t, d].
            source_labels: [n_s], of any type that sorts.
            target_labels: [n_t], -1 (for names: "") where unknown; None: all are. Known ones are trained on as well.
        """
        self._checked_options()
        source, target = two_domains(source, target)
        source_labels = checked_labels(source_labels, len(source), "source")
        known, known_labels = _known(target_labels, len(target))
        classes = classes_of(source_labels, known_labels)
        problem = Problem(source, np.searchsorted(classes, source_labels), target,
                          _places(classes, known, known_labels, len(target)), self._classify, self.seed)
        if self.method in MAPPINGS:
            return self._mapped(problem, classes)
        return self._weighted(problem, classes) if self.method in WEIGHTS else self._boosted(problem, classes)

    def _mapped(self, problem: Problem, classes: Array) -> Fitted:
        mapping = MAPPINGS[self.method](problem, **self.options)
        given = problem.target_labels >= 0
        z = np.concatenate([mapping.of_source(problem.source), mapping.of_target(problem.target[given])])
        if not np.isfinite(z).all():
            raise UserError(f"{self.method} gave features that are not finite; standardise the features, or give it a "
                            f"larger ridge or regularisation")
        labels = np.concatenate([problem.labels, problem.target_labels[given]])
        return Fitted(classes, mapping, fitted(self.classifier, self.c, z, labels), problem.source.shape[1])

    def _weighted(self, problem: Problem, classes: Array) -> Fitted:
        check_weighted(self.classifier)
        weights, metrics = WEIGHTS[self.method](problem.source, problem.target, jax.random.key(self.seed),
                                                **self.options)
        given = problem.target_labels >= 0
        model = fitted(self.classifier, self.c, np.concatenate([problem.source, problem.target[given]]),
                       np.concatenate([problem.labels, problem.target_labels[given]]),
                       np.concatenate([weights, np.ones(given.sum())]))
        return Fitted(classes, identity(problem), model, problem.source.shape[1], weights, metrics)

    def _boosted(self, problem: Problem, classes: Array) -> Fitted:
        check_weighted(self.classifier)
        given = problem.target_labels >= 0

        def learner(x: Array, labels: Array, weights: Array) -> Any:
            return fitted(self.classifier, self.c, x, labels, weights * len(x))

        model = tradaboost(problem.source, problem.labels, problem.target[given], problem.target_labels[given], learner,
                           **self.options)
        n_s = len(problem.source)
        weights = model.weights[:n_s] / max(model.weights[:n_s].mean(), np.finfo(float).tiny)
        return Fitted(classes, identity(problem), model, problem.source.shape[1], weights)

    def _classify(self, x: Array, labels: Array, query: Array) -> Array:
        return fitted(self.classifier, self.c, x, labels).predict(query)

    def _checked_options(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        known = options_of(self.method)
        for name in self.options:
            if name not in known:
                raise unknown("option", name, known, self.method)


def options_of(method: str) -> dict[str, Any]:
    """The keyword options of a method with their defaults."""
    function: Callable = {**MAPPINGS, **WEIGHTS, "tradaboost": tradaboost}[method]
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY}


def _known(labels: Array | None, count: int) -> tuple[Array, Array | None]:
    """Which target examples have a label, bool [n_t], and these labels."""
    if labels is None:
        return np.zeros(count, bool), None
    labels = checked_labels(labels, count, "target")
    known = labels != "" if labels.dtype.kind in "US" else labels != UNKNOWN
    return known, labels[known]


def _places(classes: Array, known: Array, labels: Array | None, count: int) -> Array:
    """int64 [n_t]: places in `classes`, `UNKNOWN` where no label or none of the source's classes is given."""
    places = np.full(count, UNKNOWN)
    if labels is not None and len(labels):
        found = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
        places[known] = np.where(classes[found] == labels, found, UNKNOWN)
    return places
