"""Classical domain adaptation between files of features: what the command `adapt` does."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from transfer_jax.adaptation import MAPPINGS
from transfer_jax.adaptation.base_classifiers import CLASSIFIERS, WEIGHTED
from transfer_jax.adaptation.domains import UNKNOWN
from transfer_jax.adaptation.estimator import METHODS, SUPERVISED, AdaptedClassifier, options_of
from transfer_jax.adaptation.normalisation import normalised
from transfer_jax.core.compilation import enable_compilation_cache
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.experiment.domain_files import Domain
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.progress import Progress, output_console, print_table

ALL = "all"
RESULTS = "adapt.json"


@dataclass(frozen=True)
class AdaptRequest:
    """What to run.

    Attributes:
        methods: names of `METHODS`, or 'all': those that the classifier and the labels allow.
        classifier, c: of `AdaptedClassifier`.
        normalise: steps of `normalisation.normalised`.
        options: 'METHOD.OPTION=VALUE' or 'OPTION=VALUE' for all methods that have it.
        labelled: target examples of each class whose labels methods may use; scores are then of the others.
        seed: draws these, and is the seed of the methods.
    """

    methods: Sequence[str] = (ALL,)
    classifier: str = "nn1"
    c: float = 1.0
    normalise: Sequence[str] = ("zscore-per-domain",)
    options: Sequence[str] = ()
    labelled: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One method on one pair.

    Attributes:
        accuracy: on the target's examples whose labels no method saw; None where the target has no labels.
        count: of these examples.
        seconds: to adapt, train and answer.
    """

    source: str
    target: str
    method: str
    accuracy: float | None
    count: int
    seconds: float
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def adapt(pairs: Sequence[tuple[Domain, Domain]], request: AdaptRequest, quiet: bool = False) -> list[Row]:
    """Every method on every pair (source, target); a bar where that takes long."""
    methods = _methods(request)
    options = {method: _options(request.options, method, methods) for method in methods}
    enable_compilation_cache("default")
    rows = []
    with Progress(total_stages=len(pairs), enabled=not quiet, total_steps=len(pairs) * len(methods)) as progress:
        for source, target in pairs:
            progress.start_stage(f"{source.name} to {target.name}", len(methods))
            task = _task(source, target, request)
            for method in methods:
                rows.append(_row(source.name, target.name, method, options[method], task, request))
                progress.advance(1, **({} if rows[-1].accuracy is None else {"accuracy": rows[-1].accuracy}))
            progress.end_stage()
    return rows


@dataclass(frozen=True)
class _Task:
    """A pair made ready: normalised features, and which target examples are labelled and which are scored."""

    source: np.ndarray
    source_labels: np.ndarray
    target: np.ndarray
    given: np.ndarray | None
    truth: np.ndarray | None
    scored: np.ndarray


def _task(source: Domain, target: Domain, request: AdaptRequest) -> _Task:
    if source.y is None:
        raise UserError(f"the source {source.name} has no labels; only the target may be without")
    for domain in (source, target):
        if domain.y is not None and len(domain.y) != len(domain.x):
            raise UserError(f"{domain.name} has {len(domain.x)} examples but {len(domain.y)} labels; mend its file")
    x_s, x_t = normalised(source.x, target.x, request.normalise)
    if target.y is None:
        if request.labelled:
            raise UserError(f"the target {target.name} has no labels, so {request.labelled} of each class cannot "
                            f"be given to a method; leave --labelled out")
        return _Task(x_s, source.y, x_t, None, None, np.ones(len(x_t), bool))
    if not np.isin(target.y, source.y).any():
        raise UserError(f"{source.name} and {target.name} have no class in common; give domains that share classes")
    given, scored = _some_labels(target.y, request.labelled, request.seed)
    if not scored.any():
        raise UserError(f"with {request.labelled} labelled examples of each class none of {target.name} is left to "
                        f"score; give fewer")
    return _Task(x_s, source.y, x_t, given, target.y, scored)


def _some_labels(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Labels with all but `count` of each class hidden, and which are hidden."""
    if count == 0:
        return None, np.ones(len(labels), bool)
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])
    hidden = np.ones(len(labels), bool)
    hidden[chosen] = False
    nothing = "" if labels.dtype.kind in "US" else UNKNOWN
    kind = labels.dtype if labels.dtype.kind in "USf" else np.int64
    return np.where(hidden, nothing, labels).astype(kind), hidden


def _row(source: str, target: str, method: str, options: Mapping[str, Any], task: _Task, request: AdaptRequest) -> Row:
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = AdaptedClassifier(method, request.classifier, request.c, request.seed, options).fit(
            task.source, task.source_labels, task.target, task.given)
        answers = fitted.predict(task.target[task.scored])
    seconds = time.monotonic() - start
    notes = list(fitted.mapping.notes)
    if any(issubclass(item.category, ConvergenceWarning) for item in caught):
        notes.append(f"{request.classifier} not converged")
    if "effective_share" in fitted.metrics:
        notes.append(f"effective share of the source {fitted.metrics['effective_share']:.2f}")
    accuracy = None if task.truth is None else float((answers == task.truth[task.scored]).mean())
    return Row(source, target, method, accuracy, int(task.scored.sum()), round(seconds, 3), tuple(notes), options)


def _methods(request: AdaptRequest) -> list[str]:
    if request.classifier not in CLASSIFIERS:
        raise unknown("classifier", request.classifier, CLASSIFIERS)
    for name in request.methods:
        if name not in (*METHODS, ALL):
            raise unknown("method", name, (*METHODS, ALL))
    if ALL not in request.methods:
        return list(dict.fromkeys(request.methods))
    weighting = request.classifier in WEIGHTED
    return [name for name in METHODS
            if (name in MAPPINGS or weighting) and (name not in SUPERVISED or request.labelled)]


def _options(given: Iterable[str], method: str, methods: Sequence[str]) -> dict[str, Any]:
    """The options of a method among all that were given, later ones first."""
    known, found = options_of(method), {}
    for text in given:
        path, equals, value = text.partition("=")
        owner, dot, name = path.rpartition(".")
        if not equals:
            raise UserError(f"--set {text}: write METHOD.OPTION=VALUE or OPTION=VALUE")
        if dot and owner not in METHODS:
            raise unknown("method", owner, METHODS, f"--set {text}")
        owners = [owner] if dot else [each for each in methods if name in options_of(each)]
        if not owners or name not in options_of(owners[0]):
            names = {each for one in (owners or methods) for each in options_of(one)}
            raise unknown("option", name, names, f"--set {text}")
        if method in owners:
            found[name] = _value(value, known[name], text)
    return found


def _value(text: str, default: Any, where: str) -> Any:
    """The value of an option, of the kind of its default (a number where that is None)."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, str):
            return text
        if isinstance(default, tuple):
            return tuple(float(part) for part in text.split(","))
        return float(text)
    except (KeyError, ValueError):
        kind = "a number" if default is None else f"a value like {default}"
        raise UserError(f"--set {where}: expected {kind}, not {text!r}") from None


def show(rows: Sequence[Row], title: str) -> None:
    """One table: a row a method for one pair; for several, a column a pair and the mean, in percent."""
    pairs = list(dict.fromkeys((row.source, row.target) for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    if len(pairs) == 1:
        cells = [(row.method, _percent(row.accuracy), f"{row.seconds:.2f}", "; ".join(row.notes)) for row in rows]
        print_table(("method", "accuracy %", "seconds", "notes"), cells, output_console(), title)
        return
    found = {(row.source, row.target, row.method): row for row in rows}
    cells = []
    for pair in pairs:
        cells.append([f"{pair[0]} to {pair[1]}", *(_percent(found[*pair, method].accuracy) for method in methods)])
    cells.append(["mean", *(_percent(mean(rows, method)) for method in methods)])
    cells.append(["seconds", *(f"{sum(found[*pair, method].seconds for pair in pairs):.1f}" for method in methods)])
    print_table(("pair", *methods), cells, output_console(), title)
    for method in methods:
        notes = sorted({note for pair in pairs for note in found[*pair, method].notes if "effective" not in note})
        for note in notes:
            print(f"{method}: {note}")


def mean(rows: Sequence[Row], method: str) -> float | None:
    """Mean accuracy over the pairs; None where one has none."""
    values = [row.accuracy for row in rows if row.method == method]
    return None if None in values else float(np.mean(values))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def write(rows: Sequence[Row], request: AdaptRequest, folder: Path) -> Path:
    """`adapt.json` in the folder: the request, and every row."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    write_json(path, {"request": asdict(request), "rows": [asdict(row) for row in rows]})
    return path


