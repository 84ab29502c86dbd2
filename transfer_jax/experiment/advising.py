"""Which recipe for these data: measures how much there is and how like the source it is, and says why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.config import load_config
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import build, plain
from transfer_jax.evaluation import probes
from transfer_jax.evaluation.domains import a_distance
from transfer_jax.evaluation.transferability import FEATURE_SCORES, transferability
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.features import extract, fresh_model
from transfer_jax.experiment.ranking import finetuned
from transfer_jax.experiment.spec import ExperimentSpec, StageSpec
from transfer_jax.models import build_backbone
from transfer_jax.models.depth import parameter_blocks
from transfer_jax.models.model import MAIN
from transfer_jax.recipes import Setting, expand

SMALL = 100  # examples a class below which a data set counts as small
MOST_TAPS = 6  # depths at which features are probed
CHECK = "check"  # the stream that `verify` scores on: a fifth of the training examples
ALTERNATIVES = {"small": ("linear_probe", "lora(rank=4)", "lp_ft"), "large": ("lp_ft", "layer_decay", "linear_probe")}


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    examples, classes: of the training stream. by_tap: tap -> cross-validated accuracy of a linear probe, input side
    first. halved: the same on the last tap with half of the examples. distance: proxy A-distance to the source's
    examples, from 0 (alike) to 2 (told apart without error); None without such a stream. scores: transferability.
    """

    examples: int
    classes: int
    by_tap: Mapping[str, probes.Row]
    halved: float
    distance: float | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Advice:
    """A recipe with its reasons, and the recipes worth comparing with, best guess first."""

    situation: str
    recipe: str
    reasons: tuple[str, ...]
    candidates: tuple[str, ...]
    evidence: Evidence
    verified: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # recipe -> accuracy of each seed


def measure(spec: ExperimentSpec, source: str | None = None, cache_folder: Path | None = None) -> Evidence:
    """Probes the pretrained model on the training stream.

    Args:
        source: a stream of the experiment with data of the source; None: no distance.
        cache_folder: see `extract`.
    """
    trained_on(spec)  # what is wrong with the config shows before its weights are read
    return measure_model(*fresh_model(spec), source=source, cache_folder=cache_folder)


def measure_model(assembly: Assembly, variables: Mapping[str, Any], stream: str | None = None,
                  source: str | None = None, cache_folder: Path | None = None, quiet: bool = False) -> Evidence:
    """The same of a model with these variables; `stream`: to advise on (default: the first that is learnt from)."""
    spec = assembly.spec
    stream, task = trained_on(spec, stream)
    taps = depths(spec)
    features = extract(assembly, variables, stream, taps, cache_folder=cache_folder, quiet=quiet)
    classes = len(features.class_names)
    if classes < 2 or spec.tasks[task].kind != "classification":
        raise UserError(f"advice is for classification; the task {task!r} on the stream {stream!r} is "
                        f"{spec.tasks[task].kind}")
    by_tap = {tap: _probe(features.tap(tap), features.y, classes) for tap in taps}
    half = probes.split_rows(np.arange(len(features)), features.y, 2, 0)[0].answer
    halved = _probe(features.tap(taps[-1])[half], features.y[half], classes).accuracy
    scores = transferability(np.asarray(features.tap(taps[-1]), np.float64), features.y, names=FEATURE_SCORES)
    distance = None
    if source is not None:
        other = extract(assembly, variables, source, taps[-1:], cache_folder=cache_folder, quiet=quiet)
        distance = a_distance(np.asarray(features.tap(taps[-1])), np.asarray(other.tap(taps[-1])))
    return Evidence(len(features), classes, by_tap, halved, distance, scores)


def advise(evidence: Evidence, small: int = SMALL) -> Advice:
    """The situation and its recipe, from the evidence alone.

    Data are small below `small` examples a class. They are like the source if the last features answer as well as
    any earlier ones do, within one standard error; else the network is best cut where features answer best.
    """
    per_class = evidence.examples / evidence.classes
    last, best = list(evidence.by_tap)[-1], max(evidence.by_tap, key=lambda tap: evidence.by_tap[tap].accuracy)
    top, top_best = evidence.by_tap[last].accuracy, evidence.by_tap[best].accuracy
    error = math.sqrt(max(top_best * (1 - top_best), 1e-12) / evidence.examples)
    size = "small" if per_class < small else "large"
    similar = top >= top_best - error
    recipe = {("small", True): "linear_probe", ("small", False): f"truncate(tap={best})",
              ("large", True): "lp_ft", ("large", False): "situation(data=large_different)"}[size, similar]
    reasons = [
        f"{evidence.examples} examples of {evidence.classes} classes, {per_class:.0f} a class: "
        f"{'few' if size == 'small' else 'many'} (the line is drawn at {small})",
        f"with half of them a linear probe answers {evidence.halved:.3f} right, with all {top:.3f}: more data "
        f"{'would still help' if top - evidence.halved > error else 'would change little'}",
        f"the last features ({last}) answer {top:.3f} right, "
        + (f"as well as those of any depth within the error of {error:.3f}: what the source taught fits" if similar
           else f"those of {best} {top_best:.3f}: later layers are about the source")]
    if evidence.distance is not None:
        reasons.append(f"a linear classifier tells source and target apart at a distance of {evidence.distance:.2f} "
                       f"(0 alike, 2 without error)")
    reasons.append(_WHY[size, similar])
    candidates = dict.fromkeys([recipe, *ALTERNATIVES[size]])
    situation = f"{size}_{'similar' if similar else 'different'}"
    return Advice(situation, recipe, tuple(reasons), tuple(candidates), evidence)


_WHY = {
    ("small", True): "few examples cannot move many parameters well, and need not: train a linear head on frozen "
                     "features",
    ("small", False): "few examples cannot move many parameters well: cut the network where its features fit best and "
                      "train a head there",
    ("large", True): "enough examples to move everything, and features worth keeping: train the head first, then all "
                     "of it gently",
    ("large", False): "enough examples to move everything, and features that must change: start from the pretrained "
                      "values and train all of it at one rate"}


def verify(advice: Advice, reference: str, overrides: Sequence[str], folder: Path, share: float) -> Advice:
    """The same with the candidates trained for `share` of the config's length on four fifths of the training examples
    and scored on the rest; the recipe becomes the best, the earlier one of equals."""
    found: dict[str, tuple[float, ...]] = {}
    for recipe in advice.candidates:
        spec = shortened(with_recipe(reference, overrides, recipe), share)
        found[recipe] = finetuned(spec, folder / "".join(c if c.isalnum() else "_" for c in recipe).strip("_"))
    means = {recipe: float(np.mean(values)) for recipe, values in found.items()}
    best = max(means, key=lambda recipe: -math.inf if math.isnan(means[recipe]) else means[recipe])
    reason = f"trained briefly, {best} answers {means[best]:.3f} of the held-out fifth right" + (
        "" if best == advice.recipe else f", {advice.recipe} {means[advice.recipe]:.3f}")
    return dataclasses.replace(advice, recipe=best, reasons=(*advice.reasons, reason), verified=found)


def with_recipe(reference: str, overrides: Sequence[str], recipe: str) -> dict[str, Any]:
    """The config with the recipe: through its argument `recipe` if it has one, else written over its stages."""
    if takes_recipe(reference):
        return plain(load_config(recipe_reference(reference, recipe), overrides))
    values = plain(load_config(reference, overrides))
    return {**values, **expand(recipe, setting_of(build(ExperimentSpec, values))), "export": None}


def recipe_reference(reference: str, recipe: str) -> str:
    """'FILE.py:args' with its recipe replaced."""
    path, _, arg = reference.partition(":")
    kept = [item for item in arg.split(",") if item and not item.startswith("recipe=")]
    return f"{path}:{','.join([*kept, f'recipe={recipe}'])}"


def takes_recipe(reference: str) -> bool:
    """Whether the config file's arguments include a recipe."""
    try:
        return "linear_probe" in load_config(recipe_reference(reference, "linear_probe")).get("stages", {})
    except UserError as error:
        if "unknown config argument 'recipe'" in str(error):
            return False
        raise


def setting_of(spec: ExperimentSpec) -> Setting:
    """What a recipe has to know, taken from an experiment with one backbone: its length is that of all its stages."""
    stream, task = trained_on(spec)
    trained = [stage for stage in spec.stages.values() if stage.objective.ordered]
    lengths = {name: [getattr(stage, name) for stage in trained] for name in ("epochs", "steps")}
    length = next(({name: sum(found)} for name, found in lengths.items() if None not in found), None)
    if length is None:
        raise UserError("the stages of the config differ in how they give their lengths; use epochs, or steps, in all")
    source = spec.pretrained[MAIN].model_dump(exclude_defaults=True) if MAIN in spec.pretrained else {}
    return Setting(plain(spec.model.backbones[MAIN].model_dump()), source, task,
                   spec.tasks[task].model_dump(exclude={"head"}), evaluate=tuple(trained[-1].evaluate), stream=stream,
                   lr=min(stage.lr for stage in trained), **length)


def shortened(values: dict[str, Any], share: float) -> ExperimentSpec:
    """The experiment on four fifths of its training examples, scored on the rest, for a share of its length."""
    spec = build(ExperimentSpec, values)
    stream, task = trained_on(spec)
    values = plain(spec.model_dump(exclude_none=True))
    if values["streams"][stream].get("within"):
        raise UserError(f"the stream {stream!r} has a `within` already, so that no part of it can be held out")
    values["streams"][CHECK] = {**values["streams"][stream], "within": "[80%:]", "augment": ()}
    values["streams"][stream]["within"] = "[:80%]"
    for stage in values["stages"].values():
        for name in ("epochs", "steps", "examples"):
            if stage.get(name):
                stage[name] = stage[name] * share if name == "epochs" else max(1, round(stage[name] * share))
        stage.update(evaluate={CHECK: task}, eval_every=0)
        stage.pop("best", None)
        stage.pop("embed", None)
    values["report"] = {"streams": (CHECK,)}
    return build(ExperimentSpec, values)


def trained_on(spec: ExperimentSpec, stream: str | None = None) -> tuple[str, str]:
    """(stream, task) of the first supervised term, or of the first on this stream."""
    if MAIN not in spec.model.backbones:
        raise UserError(f"advice needs an experiment whose backbone is called {MAIN!r}")
    found = [pair for stage in spec.stages.values() for pair in _supervised(stage)]
    if not found:
        raise UserError("no stage of the config learns from labels, so there is nothing to advise on")
    if stream is not None and stream not in dict(found):
        raise unknown("stream", stream, dict(found), "the stages that learn from labels")
    return next(pair for pair in found if stream in (None, pair[0]))


def _supervised(stage: StageSpec) -> list[tuple[str, str]]:
    return [(term.stream, term.task) for update in stage.objective.ordered for term in update.terms.values()
            if term.kind == "task" and term.stream]


def depths(spec: ExperimentSpec) -> tuple[str, ...]:
    """Taps at about equal distances, input side first; the last features always."""
    backbone = build_backbone(spec.model.backbones[MAIN])
    taps = list(dict.fromkeys(block.tap for block in parameter_blocks(backbone)))
    if backbone.until is None and "pooled" in backbone.tap_names and "pooled" not in taps:
        taps.append("pooled")
    places = np.unique(np.linspace(0, len(taps) - 1, min(MOST_TAPS, len(taps))).round().astype(int))
    return tuple(taps[place] for place in places)


def _probe(x: np.ndarray, y: np.ndarray, classes: int) -> probes.Row:
    return probes.table((x, y), methods=("logistic",), classes=classes, folds=3)[0]
