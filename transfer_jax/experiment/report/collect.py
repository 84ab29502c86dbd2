"""Reads the plain files of finished (or broken off) runs; everything a report says comes from here."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.training.writers import read_metrics

REPAIR = "run the training command again to write it"


@dataclasses.dataclass(frozen=True)
class Result:
    """The scores of one stage on one stream under one rule of selecting the checkpoint."""

    run: str
    stage: str
    stream: str
    selection: str
    tags: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]  # name -> [S], NaN where the seed has none
    per_class: Mapping[str, np.ndarray]  # name -> [S, K]
    confusion: np.ndarray | None  # [K, K] summed over seeds, rows are true classes
    class_names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir."""

    name: str
    path: Path
    config: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    results: Sequence[Result]
    metrics: Sequence[Mapping[str, Any]]

    def title(self, stage: str) -> str:
        return str(self.stages.get(stage, {}).get("title") or stage)

    def start(self, stage: str) -> str | None:
        """The stage whose parameters `stage` began with; None if it began fresh or from another run."""
        init = self.stages.get(stage, {}).get("init")
        names = list(self.stages)
        if init == "previous":
            return names[names.index(stage) - 1] if names.index(stage) else None
        return init if isinstance(init, str) and init in names and init != stage else None

    def predictions(self, stage: str, stream: str) -> dict[str, np.ndarray] | None:
        """Arrays of `predictions/<stage>/<stream>.npz` (a '/' in the stream is a '.' there), or None without one."""
        path = self.path / "predictions" / stage / f"{stream.replace('/', '.')}.npz"
        return read_arrays(path) if path.exists() else None

    def features(self, stage: str) -> dict[str, dict[str, np.ndarray]]:
        """Features of the stage for the embedding plot, by stream: `features`, `feature_labels`, `feature_domains`."""
        found = {}
        for path in sorted((self.path / "predictions" / stage).glob("*.npz")):
            arrays = read_arrays(path, ("features", "feature_labels", "feature_domains"))
            if len(arrays.get("features", ())) > 1:
                found[path.stem] = arrays
        return found

    def validated(self, stage: str) -> dict[str, dict[str, np.ndarray]]:
        """Features of source and target, the same arrays, at the 'start' and the 'end' of a stage with validators; a
        label of -1 is not known."""
        paths = {moment: self.path / "predictions" / stage / "validation" / f"{moment}.npz"
                 for moment in ("start", "end")}
        return {moment: read_arrays(path) for moment, path in paths.items() if path.exists()}


def read_runs(workdirs: Sequence[str | os.PathLike]) -> list[Run]:
    """Reads every workdir; runs are named by the shortest tail of their path that tells them apart.

    Raises:
        UserError: no workdir, the same one twice, or a file that is missing or damaged (named).
    """
    paths = [Path(os.path.abspath(workdir)) for workdir in workdirs]
    if not paths:
        raise UserError("no workdir to report on; give at least one folder of a run")
    if len(set(paths)) < len(paths):
        raise UserError(f"workdir {max(paths, key=paths.count)} is given twice; name each run once")
    return [read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def read_run(workdir: str | os.PathLike, name: str | None = None) -> Run:
    """Reads one workdir (see `read_runs`)."""
    path = Path(workdir)
    if not path.is_dir():
        raise UserError(f"workdir {path} does not exist; give the folder that --workdir named when training")
    name = name or path.name
    config = read_json(path / "config.json", dict)
    stages = read_json(path / "stages.json", dict)
    entries = read_json(path / "results.json", list)
    results = [_result(entry, name, f"{path / 'results.json'}, entry {i}") for i, entry in enumerate(entries)]
    return Run(name, path, config, stages, results, read_metrics(path))


def joined(runs: Sequence[Run]) -> Run:
    """One run of the finished stages of all, named as their config; stages of one name are the first run's."""
    stages: dict[str, Any] = {}
    results, metrics = [], []
    for run in runs:
        new = {name: facts for name, facts in run.stages.items() if name not in stages}
        results += [result for result in run.results if result.stage in new]
        metrics += [line for line in run.metrics if line["stage"] in new]
        stages |= new
    config = {**runs[0].config, "stages": {stage: spec for run in reversed(runs)
                                           for stage, spec in (run.config.get("stages") or {}).items()}}
    return dataclasses.replace(runs[0], name=str(config.get("name") or runs[0].name), stages=stages, results=results,
                               metrics=metrics, config=config)


def by_experiment(runs: Sequence[Run]) -> list[Run]:
    """The runs, those joined that share an experiment's stages among them, as the runs of a sweep over its arms do:
    their config has one name, one set of seeds and one kind of report, and no two of them have a stage in common."""
    groups: list[list[Run]] = []
    for run in runs:
        own = next((group for group in groups if all(
            not set(other.stages) & set(run.stages) and
            all(other.config.get(key) == run.config.get(key) for key in ("name", "seeds", "report"))
            for other in group)), None)
        if own is None:
            groups.append([run])
        else:
            own.append(run)
    return [joined(group) if len(group) > 1 else group[0] for group in groups]


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file whose top level is a `kind` (dict or list); UserError names a bad file."""
    if not path.exists():
        raise UserError(f"{path} is missing; {REPAIR}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); {REPAIR}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} is damaged (its top level is no {kind.__name__}); {REPAIR}")
    return content


def read_arrays(path: Path, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz (only `keys`, if given), never unpickled; UserError names a bad file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if keys is None or key in keys}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to leave it out, or {REPAIR}") from error


def _result(entry: Any, run: str, where: str) -> Result:
    try:
        confusion = entry.get("confusion")
        return Result(
            run=run, stage=entry["stage"], stream=entry["stream"], selection=entry["selection"],
            tags=dict(entry.get("tags") or {}),
            metrics={name: _numbers(values, 1) for name, values in entry["metrics"].items()},
            per_class={name: _numbers(values, 2) for name, values in (entry.get("per_class") or {}).items()},
            confusion=None if confusion is None else _numbers(confusion, 2),
            class_names=[str(name) for name in entry.get("class_names") or []])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is damaged ({type(error).__name__}: {error}); {REPAIR}") from error


def _numbers(values: Any, rank: int) -> np.ndarray:
    array = np.array(values, dtype=object)
    array = np.where(np.equal(array, None), np.nan, array).astype(np.float64)
    array = np.atleast_1d(array) if rank == 1 else array
    if array.ndim != rank:
        raise ValueError(f"expected {rank} axes of numbers, found {array.ndim}")
    return array


def _names(paths: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
