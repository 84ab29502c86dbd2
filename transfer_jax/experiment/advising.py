"""Which recipe for these data: measures how much there is and how like the source it is, and says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.config import load_config
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import build, plain
from transfer_jax.evaluation import probes
from transfer_jax.evaluation.domains import a_distance
from transfer_jax.evaluation.transferability import FEATURE_SCORES, transferability
from transfer_jax.experiment.advice import Advice, Evidence, chosen
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.features import extract, fresh_model
from transfer_jax.experiment.ranking import finetuned
from transfer_jax.experiment.spec import ExperimentSpec, StageSpec
from transfer_jax.models import build_backbone
from transfer_jax.models.depth import parameter_blocks
from transfer_jax.models.model import MAIN
from transfer_jax.recipes import Setting, expand
from transfer_jax.recipes.setting import HEAD

MOST_TAPS = 6  # depths at which features are probed
CHECK = "check"  # the stream that `verify` scores on: a fifth of the training examples


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
    chance = float(np.bincount(features.y).max() / len(features))
    return Evidence(len(features), classes, chance, by_tap, halved, distance, scores)


def verify(advice: Advice, with_recipe: Callable[[str], Mapping[str, Any]], folder: Path, share: float) -> Advice:
    """The same with the candidates trained for `share` of the length of `with_recipe(recipe)`, on four fifths of the
    training examples, and scored on the rest; the recipe becomes the best, the earlier one of equals."""
    return chosen(advice, try_out(advice.candidates, with_recipe, folder, share))


def try_out(recipes: Sequence[str], with_recipe: Callable[[str], Mapping[str, Any]], folder: Path, share: float = 1.0,
            ) -> dict[str, tuple[float, ...]]:
    """Recipe -> accuracy of each seed on the held-out fifth, trained in a folder of its own below `folder`."""
    return {recipe: finetuned(shortened(with_recipe(recipe), share), folder / _folder_name(recipe))
            for recipe in recipes}


def _folder_name(recipe: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in recipe).strip("_")


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


def on_network(spec: ExperimentSpec, folder: Path, stage: str, stream: str, steps: int, recipe: str) -> dict[str, Any]:
    """The config in which a recipe goes on for `steps` steps, with a new head, from what a stage of the run in `folder`
    left; rates and optimizer are those of the run's first stage that learns from the stream."""
    _, task = trained_on(spec, stream)
    first = next(found for found in spec.stages.values() if stream in dict(_supervised(found)))
    start = f"checkpoint:{folder}@{stage}"
    told = Setting(plain(spec.model.backbones[MAIN].model_dump()), {}, task,
                   spec.tasks[task].model_dump(exclude={"head", "class_names_from"}),
                   plain(spec.model.heads[spec.tasks[task].head].model_dump()), stream=stream, evaluate=(), steps=steps,
                   lr=first.lr, start=start, stage={"optimizer": plain(first.optimizer.model_dump())})
    found = expand(recipe, told)
    for each in found["stages"].values():
        if each.get("init") == start:
            each["new"] = (HEAD,)
    values = plain(spec.model_dump(exclude_none=True))
    values["streams"] = {stream: values["streams"][stream]}
    return {**values, **found, "export": None}


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
