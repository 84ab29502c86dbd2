"""The parameters that a stage leaves to others, and the rows that it leaves to the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.mesh import fetch
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.data.stream import read_example
from transfer_jax.evaluation.evaluator import Scores
from transfer_jax.evaluation.shown import MOST_SHOWN
from transfer_jax.experiment.spec import BestSpec, ExperimentSpec, StageSpec
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.models.domains import main_statistics
from transfer_jax.params.peft import PeftSpec, merged
from transfer_jax.training.averaging import averaged_variables
from transfer_jax.training.state import Constants, Flat, State

EMBEDDED = 500


def checkpoint_tree(state: State, constants: Constants, best: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a stage needs to go on, and everything that others need of it."""
    return {"state": state._asdict(), "constants": constants._asdict(), "best": dict(best)}


def variables_of(tree: Mapping[str, Any], select: str, average: bool, where: str) -> tuple[Flat, Any]:
    """Parameters (flat, with member axis) and statistics from a checkpoint tree.

    Args:
      select: 'last' or 'best'.
      average: whether the stage's result is the moving average.
    """
    state, frozen = tree["state"], tree["constants"]["frozen"]
    if select == "best":
        if not tree["best"]:
            raise UserError(f"{where} keeps no best parameters; set its 'best', or select='last'")
        return {**frozen, **tree["best"]["params"]}, unflatten(tree["best"]["stats"])
    if average and state["ema"]:
        params, stats = averaged_variables(State(**state))
        return {**frozen, **params}, stats
    return {**frozen, **state["trainable"]}, state["batch_stats"]


def weighted(found: Sequence[tuple[Flat, Any]], weights: Sequence[float]) -> tuple[Flat, Any]:
    """The weighted sum of parameters and statistics of several sources; a single source is returned as it is.

    Only parameters that all sources have are summed: weights of loss terms belong to one stage.
    """
    if len(found) == 1:
        return found[0]
    common = [{path: params[path] for path in found[0][0] if all(path in other for other, _ in found)}
              for params, _ in found]
    trees = [(params, stats) for params, (_, stats) in zip(common, found, strict=True)]

    def total(*leaves: Any) -> jax.Array:
        return sum(weight * jnp.asarray(leaf) for weight, leaf in zip(weights, leaves, strict=True))

    return jax.tree.map(total, *trees)


def stage_result(workdir: Workdir, spec: ExperimentSpec, stage: str, select: str, step: int | None = None) -> Any:
    """Parameters and statistics that a finished stage left in its checkpoint."""
    return with_peft(spec.stages[stage].peft, stage_variables(workdir, spec, stage, select, step))


def stage_variables(workdir: Workdir, spec: ExperimentSpec, stage: str, select: str, step: int | None = None) -> Any:
    """The same with the stage's leaves of `peft` beside the others."""
    found = workdir.checkpoints(stage).restore(step=step)
    if found is None:
        raise UserError(f"{workdir.path} has no checkpoint of stage {stage!r}; run it first")
    return variables_of(found[1], select, spec.stages[stage].averaged, f"stage {stage!r}")


def stage_statistics(workdir: Workdir, stage: str) -> Mapping[str, Any]:
    """What a finished stage measured of its start, [S, ...] by name; see `objectives/statistics.py`."""
    found = workdir.checkpoints(stage).restore()
    if found is None:
        raise UserError(f"{workdir.path} has no checkpoint of stage {stage!r}; run it first")
    return found[1]["constants"]["statistics"]


def with_peft(specs: Mapping[str, PeftSpec], variables: tuple[Flat, Any]) -> tuple[Flat, Any]:
    """The variables of the plain model: leaves of `peft` worked into the layers that they change."""
    if not specs:
        return variables
    return jax.vmap(lambda params: merged(specs, params))(variables[0]), variables[1]


def from_checkpoint(reference: str, select: str, shapes: Mapping[str, Any], stats: Any, members: int,
                    renewed: frozenset[str]) -> tuple[Flat, Any]:
    """Parameters from another run, `WORKDIR[@stage]`, checked leaf by leaf against this model.

    Args:
      shapes: path -> shape of one seed, of every parameter wanted.
      renewed: paths that will be initialised afresh and may be absent or of another shape.
    """
    folder, _, stage = reference.partition("@")
    other = Workdir(folder)
    spec = other.spec()
    stage = stage or list(spec.stages)[-1]
    if stage not in spec.stages:
        raise UserError(f"init=checkpoint:{reference}: that run has no stage {stage!r}; it has "
                        f"{', '.join(spec.stages)}")
    params, batch_stats = stage_result(other, spec, stage, select)
    batch_stats = main_statistics(batch_stats)
    wrong = [path for path, leaf in shapes.items() if path not in renewed
             and (path not in params or tuple(params[path].shape[1:]) != tuple(leaf.shape))]
    if wrong:
        raise UserError(f"init=checkpoint:{reference} lacks {len(wrong)} parameters of this model, or has them in "
                        f"another shape ({', '.join(wrong[:4])}{', ...' if len(wrong) > 4 else ''}); name what is "
                        f"meant to be new in the stage's 'new'")
    expected, found = flatten(stats), flatten(batch_stats)
    if any(path not in found or tuple(found[path].shape[1:]) != tuple(leaf.shape) for path, leaf in expected.items()):
        raise UserError(f"init=checkpoint:{reference}: its BatchNorm statistics do not fit this model")
    batch_stats = unflatten({path: found[path] for path in expected})
    kept = {path: params[path] for path in shapes if path not in renewed}
    return jax.tree.map(lambda leaf: _for_members(leaf, members, reference), (kept, batch_stats))


def _for_members(leaf: Any, members: int, reference: str) -> jax.Array:
    if leaf.shape[0] == members:
        return jnp.asarray(leaf)
    if leaf.shape[0] != 1:
        raise UserError(f"init=checkpoint:{reference} holds {leaf.shape[0]} seeds, this run has {members}; use as many "
                        f"seeds, or a checkpoint of one")
    return jnp.repeat(jnp.asarray(leaf), members, axis=0)


def start_best(members: int, trainable: Flat, batch_stats: Any) -> dict[str, Any]:
    """The record of the best parameters before any evaluation."""
    return {"score": np.full(members, np.nan), "step": np.full(members, -1, np.int32),
            "params": fetch(trainable), "stats": fetch(flatten(batch_stats))}


def better(best: dict[str, Any], spec: BestSpec, scores: np.ndarray, step: int, params: Flat,
           batch_stats: Any) -> dict[str, Any]:
    """`best` with the seeds whose score improved replaced; the earliest of equal scores stays."""
    sign = 1 if spec.mode == "max" else -1
    improved = np.isnan(best["score"]) | (sign * scores > sign * best["score"])
    if not improved.any():
        return best

    def choose(old: Any, new: Any) -> np.ndarray:
        new = np.asarray(new)
        return np.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return {"score": choose(best["score"], scores), "step": choose(best["step"], np.full_like(best["step"], step)),
            "params": {path: choose(old, params[path]) for path, old in best["params"].items()},
            "stats": {path: choose(old, leaf) for (path, old), leaf in
                      zip(best["stats"].items(), flatten(batch_stats).values(), strict=True)}}


def result_row(name: str, stage: StageSpec, label: str, selection: str, scores: Scores,
               class_names: tuple[str, ...]) -> dict[str, Any]:
    """One row of `results.json`."""
    row = {"stage": name, "tags": stage.tags, "stream": label, "selection": selection, "class_names": list(class_names),
           "metrics": {key: _numbers(values) for key, values in scores.metrics.items()}, "per_class": {},
           "confusion": None}
    for key, arrays in scores.arrays.items():
        if key == "confusion_matrix":
            row["confusion"] = np.sum(arrays, axis=0).tolist()
        elif len(arrays[0]) == len(class_names):
            row["per_class"][key.removeprefix("per_class_")] = [_numbers(values) for values in arrays]
    return row


def _numbers(values: Any) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in np.asarray(values, np.float64)]


def prediction_file(stream: Any, scores: Scores) -> dict[str, np.ndarray]:
    """Arrays of `predictions/<stage>/<stream>.npz`: the first seed's answers, worst mistakes and features.

    Answers that a report draws are kept for the examples that it shows, as `<answers>_true` and `<answers>_predicted`.
    """
    rows, drawn = scores.examples, scores.shown
    flat = "prediction" in rows
    arrays = {key: rows[key] for key in ("confidence", "loss", "index") if key in rows and rows[key].ndim == 1}
    if flat:
        arrays |= {"prediction": rows["prediction"], "label": rows["label"]}
    if "loss" in rows and flat:
        wrong = np.flatnonzero(rows["prediction"] != rows["label"])
        shown = wrong[np.argsort(-rows["loss"][wrong], kind="stable")][:MOST_SHOWN]
        if stream.dataset.words:
            texts = [stream.dataset.text_of(int(rows["index"][row])) for row in shown]
            arrays |= {"texts": np.array(texts, str), "text_rows": shown}
        else:
            arrays |= _thumbnails([_picture(stream, int(rows["index"][row]), True) for row in shown], shown)
    elif drawn:
        shown = drawn["row"]
        arrays |= _thumbnails([_picture(stream, int(rows["index"][row]), False) for row in shown], shown)
        for key, values in (("true", drawn["label"]), ("predicted", drawn.get("probabilities", drawn["prediction"]))):
            arrays[f"{scores.answers}_{key}"] = _shown(values, scores.answers, stream.description)
    if "features" in rows and flat:
        shown = np.linspace(0, len(rows["features"]) - 1, min(EMBEDDED, len(rows["features"]))).astype(int)
        arrays |= {"features": rows["features"][shown].astype(np.float32), "feature_labels": rows["label"][shown],
                   "feature_domains": np.full(len(shown), stream.spec.domain)}
    return arrays


def _picture(stream: Any, row: int, stored: bool) -> np.ndarray:
    """The image as it is stored, or as the network sees it, on which alone masks and boxes fit."""
    return stream.dataset.load(row)["image"] if stored else read_example(stream.dataset, row, stream.spec)["image"]


def _thumbnails(images: Sequence[np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Images of one shape with the rows that they show; nothing where their shapes differ."""
    if len({image.shape for image in images}) != 1:
        return {}
    return {"thumbnails": np.stack(images), "thumbnail_rows": rows}


def _shown(values: np.ndarray, answers: str, description: Mapping[str, Any]) -> np.ndarray:
    """Masks as bytes, images as pixels, everything else as it is."""
    if answers == "masks":
        return values.astype(np.uint8)
    if answers == "images":
        mean, std = (np.asarray(description[key], np.float32) for key in ("mean", "std"))
        return np.rint(np.clip(values * std + mean, 0, 1) * 255).astype(np.uint8)
    return values
