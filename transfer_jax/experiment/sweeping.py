"""Many runs of one config: each in a process and a folder of its own, so that none can break another."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from transfer_jax.core.config import load_config, load_sweep
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.report import terminal_table, write_report
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.progress import print_table

DONE, SKIPPED, FAILED = "done", "finished before", "failed"


def run_sweep(config: str, workdir: Path, overrides: Sequence[str] = ()) -> int:
    """Runs every entry of the config's sweep and merges the reports. Returns the exit code: 0, or 1 if a run failed."""
    runs = load_sweep(config)
    names = run_names(runs)
    workdir.mkdir(parents=True, exist_ok=True)
    states: dict[str, str] = {}
    console = Console(stderr=True)
    for number, (name, run) in enumerate(zip(names, runs, strict=True), start=1):
        flags = [*overrides, *(f"{path}={value!r}" for path, value in run.items())]
        console.print(f"run {number}/{len(runs)}: {name}", highlight=False)
        states[name] = _run_one(config, workdir / name, flags)
        write_json(workdir / "sweep.json", {"config": config, "overrides": list(overrides), "runs": [
            {"name": n, "overrides": {k: repr(v) for k, v in r.items()}, "state": states.get(n, "not started")}
            for n, r in zip(names, runs, strict=True)]})
    finished = [workdir / name for name in names if states[name] != FAILED]
    print_table(("run", "state"), list(states.items()), Console())
    if not finished:
        raise UserError(f"all {len(runs)} runs of the sweep failed; see output.txt in the folders of {workdir}")
    paths = write_report(finished, workdir)
    terminal_table(finished)
    print(f"report: {paths.html}")
    return 1 if FAILED in states.values() else 0


def run_names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder name for each run, readable and distinct: the last word of every path with its value."""
    names = []
    for run in runs:
        text = ",".join(f"{path.rpartition('.')[2]}={value}" for path, value in run.items()) or "default"
        names.append(re.sub(r"[^A-Za-z0-9_.=,+-]+", "-", text)[:80].strip("-"))
    if len(set(names)) < len(names):
        names = [f"{number:03d}_{name}" for number, name in enumerate(names)]
    return names


def finished(workdir: Path) -> bool:
    """Whether every stage of the run has ended and its model is exported."""
    if not (workdir / "config.json").is_file():
        return False
    run = Workdir(workdir)
    return all(run.record(stage) is not None for stage in run.spec().stages) and (workdir / "report.html").is_file()


def _run_one(config: str, workdir: Path, flags: Sequence[str]) -> str:
    if finished(workdir):
        Workdir(workdir).open(build(ExperimentSpec, load_config(config, flags)), allow_config_change=False)
        return SKIPPED
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "transfer_jax.train", "--config", config, "--workdir", str(workdir),
               *(f"--config.{flag}" for flag in flags)]
    began = time.monotonic()
    with open(workdir / "output.txt", "a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # it saves first
            process.wait()
            raise
    if code == 0 and finished(workdir):
        return DONE
    last = (workdir / "output.txt").read_text().strip().splitlines()[-1:]
    print(f"{workdir.name} failed after {time.monotonic() - began:.0f} s (exit code {code}): {' '.join(last)}",
          file=sys.stderr)
    return FAILED
