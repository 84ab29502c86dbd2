"""A small experiment on 8x8 digits, and how the tests run it: in this process, step by step, or as a command."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from transfer_jax import command_line
from transfer_jax.core.config import set_path
from transfer_jax.core.spec import build, plain
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.measuring import Measuring
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import ReadyStage, added_parameters, fresh_variables, names_of_metrics, prepare
from transfer_jax.training.interruption import StopRequest
from transfer_jax.training.lane import Cadence, Hooks, Lane
from transfer_jax.training.loop import train
from transfer_jax.training.state import State

ROOT = Path(__file__).resolve().parent.parent


def config(data: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The experiment as a plain dict, with `changes` (path -> value) applied; three stages of 6 steps."""
    source = {"kind": "arrays", "path": str(data)}
    digits = {"kind": "task", "task": "digits", "stream": "train"}
    values = plain({
        "name": "tiny", "seeds": (0,), "log_every": 1, "checkpoint_every": 2, "eval_batch_size": 16,
        "model": {"backbones": {"backbone": {"kind": "small_cnn", "widths": (4, 8)}},
                  "heads": {"digits": {"kind": "linear"}}},
        "streams": {"train": {"data": source, "batch_size": 8, "domain": "plain"},
                    "test": {"data": source, "split": "test", "batch_size": 8, "domain": "plain"}},
        "tasks": {"digits": {"kind": "classification", "head": "digits"}},
        "stages": {
            "pretrain": {"init": "fresh", "steps": 6, "lr": 1e-2, "objective": {"terms": {"digits": digits}},
                         "evaluate": {"test": "digits"}},
            "head": {"steps": 6, "lr": 1e-2, "new": ("heads/digits/.*",), "objective": {"terms": {"digits": digits}},
                     "partition": (("heads/.*", "head"), (".*", "frozen")), "groups": {"head": {}},
                     "evaluate": {"test": "digits"}},
            "finetune": {"init": "head", "steps": 6, "lr": 1e-3, "objective": {"terms": {"digits": digits}},
                         "evaluate": {"test": "digits"}, "eval_every": 3},
        },
    })
    for path, value in (changes or {}).items():
        set_path(values, path, value)
    return values


def single(data: Path, stage: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> ExperimentSpec:
    """The experiment with one stage, `only`: supervised training of everything for 20 steps, with `stage` on top."""
    values = config(data)
    only = {**copy.deepcopy(values["stages"]["pretrain"]), "steps": 20, **stage}
    values["stages"] = {"only": plain(only)}
    for path, value in (changes or {}).items():
        set_path(values, path, value)
    return build(ExperimentSpec, values)


@dataclass
class Trained:
    """What training of one stage gave: metrics of every step (name -> [steps, S]) and the state before and after."""

    ready: ReadyStage
    before: State
    after: State
    constants: Any
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    placed: State | None = None  # `after` as it lies on the devices


def start(spec: ExperimentSpec, stage: str = "only", variables: Any = None, mesh: Any = None) -> tuple[Any, ...]:
    """(ready stage, state, constants, feeds, seeds, metric names) of a stage that starts from fresh parameters."""
    assembly = Assembly(spec)
    if mesh is not None:
        assembly.mesh = mesh
    ready = prepare(assembly, stage)
    params, stats = variables or fresh_variables(assembly)
    params = {**params, **added_parameters(ready, params, spec.seeds)}
    streams = ready.program.streams
    feeds = {name: feed for name in streams if (feed := assembly.feed(name)) is not None}
    seeds = ready.seeds(spec.seeds)
    statistics = Measuring(assembly, ready).values(params, stats)
    names = names_of_metrics(ready, (params, stats), statistics, feeds, seeds)
    placed = ready.placed(*ready.start(params, stats, len(names), assembly.members, statistics))
    return ready, *placed, feeds, seeds, names


def trained(spec: ExperimentSpec, stage: str = "only", steps_per_dispatch: int = 0, variables: Any = None,
            mesh: Any = None) -> Trained:
    """Runs the engine's own loop over a stage, with a log point after every step."""
    ready, state, constants, feeds, seeds, names = start(spec, stage, variables, mesh)
    before = jax.device_get(state)
    logged: list[dict[str, np.ndarray]] = []
    hooks = Hooks(log=lambda step, means: logged.append(means), evaluate=lambda *a: None, save=lambda *a: None,
                  advance=lambda *a: None)
    lane = Lane(stage, ready.program, state, constants, feeds, seeds, names, Cadence(spec.log_every, 0, 0), hooks)
    with StopRequest() as stop:
        train([lane], stop, steps_per_dispatch)
    state = lane.state
    absent = np.full(len(spec.seeds), np.nan)
    metrics = {name: np.stack([means.get(name, absent) for means in logged]) for name in names if "#" not in name}
    return Trained(ready, before, jax.device_get(state), constants, metrics, state)


def run(values: Mapping[str, Any], workdir: Path) -> Runner:
    """Runs an experiment to its end in this process."""
    runner = Runner(build(ExperimentSpec, values), workdir, quiet=True)
    runner.run()
    return runner


def write_config(folder: Path, values: Mapping[str, Any], sweep: Sequence[Mapping[str, Any]] = ()) -> Path:
    """A config file that returns `values`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.py"
    path.write_text(f"import ml_collections\n\n\ndef get_config(arg=None):\n"
                    f"    return ml_collections.ConfigDict({values!r})\n\n\ndef get_sweep(arg=None):\n"
                    f"    return {list(sweep)!r}\n")
    return path


def arguments(command: str, *flags: Any) -> list[str]:
    """The command line of one of our commands."""
    return [sys.executable, "-m", f"transfer_jax.{command}", *map(str, flags)]


def process(name: str, *flags: Any) -> subprocess.CompletedProcess:
    """Runs one of our commands as a process of its own; output as text."""
    return subprocess.run(arguments(name, *flags), capture_output=True, text=True, cwd=ROOT, timeout=300,
                          check=False)


def command(name: str, *flags: Any) -> subprocess.CompletedProcess:
    """Runs one of our commands in this process, which spares its imports; the same result as `process`."""
    given = arguments(name, *flags)
    main = importlib.import_module(given[2]).main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", given[2:]):
        try:
            command_line.run(main)
        except SystemExit as end:
            return subprocess.CompletedProcess(given, end.code, out.getvalue(), err.getvalue())
    raise AssertionError("a command ends with an exit code")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def same_leaves(a: Any, b: Any) -> bool:
    """Whether two trees have equal structure and bit-identical leaves."""
    left, right = jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)
    return [path for path, _ in left] == [path for path, _ in right] and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for (_, x), (_, y) in zip(left, right, strict=True))
