"""From a configured combination to the function that makes one loss, or one gradient, of many.

As with terms (`objectives/wiring.py`), the names of a function's positional parameters say what it receives:

    losses        of a combination of losses: float32 scalars by name of term; of a rule for gradients: float32 [T]
    gradients     float [T, P], a row a term
    present       bool [T]: which terms count in this step (see `on_bad_task`); the rows of others are 0
    key           a typed random key
    names         of the terms, in the order of [T]
    log_variances, kinds   learned numbers of the terms, and 'classification' or 'regression', by name
    lookahead     function: (direction [P], weights [T]) -> gradient [P] of the weighted losses at parameters less the
                  direction, on the batches that the update's `lookahead` names
    carried       arrays that the combination keeps from step to step

It returns the result (a total, or a gradient [P]), or (result, metrics), or (result, metrics, carried). A metric
'weights' [T] is logged term by term. Keyword-only parameters, also those of functions of `COMBINATION_CARRIED` (what
is carried at first) and `AFTER_STEP`, are the arguments that a config may set. What is carried lies in checkpoints, for
every seed. Where `AFTER_STEP` has an entry, it moves once more after the optimizer's step: (carried, losses [T] of the
same batches after it) -> carried, at the cost of one forward pass.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component, lookup
from transfer_jax.objectives import (
    AFTER_STEP,
    COMBINATION_CARRIED,
    COMBINATION_PARAMETERS,
    COMBINATIONS,
    GRADIENT_RULES,
    WEIGHT_LEARNERS,
)
from transfer_jax.objectives.wiring import Term

LEARNED = "objective/log_variances"  # learned numbers of terms: objective/log_variances/<term>


@dataclass(frozen=True)
class Combination:
    """A bound combination of the terms `names`."""

    kind: str
    names: tuple[str, ...]
    kinds: Mapping[str, str]
    function: Callable[..., Any]
    reads: tuple[str, ...]  # names of its positional parameters
    first_carried: Callable[[], Any] | None = None
    after_step: Callable[[Any, jax.Array], Any] | None = None

    @property
    def rules_gradients(self) -> bool:
        return self.kind in GRADIENT_RULES

    @property
    def weighs_losses(self) -> bool:
        """Whether its weights are those of losses, so that they also count for what one term alone trains."""
        return self.kind in WEIGHT_LEARNERS

    def __call__(self, **known: Any) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """The result, metrics, and what is carried on (None: nothing).

        Args:
          known: quantities by name; in place of `log_variances` the leaves among which they are, `parameters`.
        """
        known |= {"names": self.names, "kinds": self.kinds}
        if "log_variances" in self.reads:
            known["log_variances"] = {name: known["parameters"][f"{LEARNED}/{name}"] for name in self.names}
        result = self.function(**{name: known[name] for name in self.reads})
        value, metrics, *carried = result if isinstance(result, tuple) else (result, {})
        return value, self._named(metrics), jax.lax.stop_gradient(carried[0]) if carried else None

    def _named(self, metrics: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Metrics as they are logged: 'weights' [T] becomes `weight_<name>`."""
        metrics = dict(metrics)
        if "weights" in metrics:
            metrics |= {f"weight_{name}": weight for name, weight in
                        zip(self.names, metrics.pop("weights"), strict=True)}
        return metrics


def make_combination(component: Component, terms: Sequence[Term], where: str) -> Combination:
    """Binds a combination of these terms, checking its name and arguments."""
    kind, names = component.kind, tuple(term.name for term in terms)
    function = lookup({**COMBINATIONS, **GRADIENT_RULES}, kind, "combination", where)
    start, after = COMBINATION_CARRIED.get(kind), AFTER_STEP.get(kind)
    parts = [part for part in (function, COMBINATION_PARAMETERS.get(kind), start, after) if part]
    options = dict.fromkeys(name for part in parts for name in _parameters(part, keyword_only=True))
    for name in component.arguments:
        if name not in options:
            raise unknown("argument", name, options, f"{where}.combine (kind {kind!r})")

    def bound(part: Callable, *given: Any) -> Callable:
        own = _parameters(part, keyword_only=True)
        return functools.partial(part, *given, **{key: v for key, v in component.arguments.items() if key in own})

    kinds = {term.name: "regression" if term.task_kind == "regression" else "classification" for term in terms}
    return Combination(kind, names, kinds, bound(function), _parameters(function, keyword_only=False),
                       start and bound(start, len(names)), after and bound(after))


def _parameters(function: Callable, keyword_only: bool) -> tuple[str, ...]:
    return tuple(name for name, p in inspect.signature(function).parameters.items()
                 if (p.kind is p.KEYWORD_ONLY) == keyword_only)


def check_gradients(combination: Combination, gradients_of: str, streams: Sequence[str],
                    lookahead: Mapping[str, str], accumulate: int, where: str) -> None:
    """Raises for gradients, streams to look ahead on, or micro-batches that the combination cannot use.

    Args:
      streams: those that the terms read.
      gradients_of, lookahead: see `CombiningSpec`.
      accumulate: number of micro-batches.
    """
    kind, ahead = combination.kind, "lookahead" in combination.reads
    if gradients_of != "shared" and not combination.rules_gradients:
        raise UserError(f"{where}.gradients_of = {gradients_of!r} is for rules that combine gradients "
                        f"({', '.join(GRADIENT_RULES)}); {kind!r} combines losses, leave it out")
    if lookahead and not ahead:
        raise UserError(f"{where}.lookahead: {kind!r} does not look ahead; leave it out, or use 'auto_lambda'")
    for name in lookahead:
        if name not in streams:
            raise unknown("stream of the terms", name, streams, f"{where}.lookahead")
    of_features = gradients_of not in ("shared", "parameters")
    if of_features and ahead:
        raise UserError(f"{where}.gradients_of = {gradients_of!r}: {kind!r} looks ahead along gradients of parameters; "
                        f"use 'shared' or 'parameters'")
    if accumulate > 1 and (of_features or ahead or combination.after_step is not None):
        what = f"gradients_of = {gradients_of!r}" if of_features else f"combine = {kind!r}"
        raise UserError(f"{where}.{what} works on one whole batch; set accumulate=1")


def check_affinity(terms: Sequence[Term], sampled: bool, accumulate: int, where: str) -> None:
    """Raises where the affinity of terms cannot be measured."""
    if len(terms) < 2:
        raise UserError(f"{where}.affinity compares terms, but there is one; leave it out")
    if sampled or accumulate > 1:
        what = "'sampling' trains one task a step" if sampled else f"accumulate = {accumulate} cuts the batch"
        raise UserError(f"{where}.affinity needs the losses of all terms on one whole batch, but {what}; leave one of "
                        f"the two out")
