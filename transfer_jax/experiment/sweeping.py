"""Many runs of one config: each in a process and a folder of its own, so that none can break another."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from transfer_jax.core.config import ARG, load_config, load_sweep, with_arg
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.report import terminal_table, write_report
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.interruption import Interrupted
from transfer_jax.training.progress import Progress, print_table

DONE, SKIPPED, FAILED, STOPPED = "done", "finished before", "failed", "stopped"
SWEEP = "sweep.json"
POLL_SECONDS = 1.0
DAY_MINUTES = 24 * 60


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of a config's `get_sweep()`, each in its folder below `workdir`."""

    config: str
    workdir: Path
    overrides: tuple[str, ...] = ()

    @functools.cached_property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Folder name -> what the run overrides."""
        runs = load_sweep(self.config)
        return dict(zip(run_names(runs), runs, strict=True))

    def reference(self, name: str) -> str:
        """The config of a run, with its argument."""
        return with_arg(self.config, self.runs[name].get(ARG, ""))

    def flags(self, name: str) -> list[str]:
        return [*self.overrides, *(f"{path}={value!r}" for path, value in self.runs[name].items() if path != ARG)]

    def run(self) -> int:
        """Runs one after the other, then merges the reports. Returns the exit code: 0, or 1 if a run failed."""
        states: dict[str, str] = {}
        console = Console(stderr=True)
        for number, name in enumerate(self.runs, start=1):
            console.print(f"run {number}/{len(self.runs)}: {name}", highlight=False)
            states[name] = run_one(self.reference(name), self.workdir / name, self.flags(name))
            self._write(states)
            if states[name] == STOPPED:
                raise Interrupted(signal.SIGTERM)
        return self._conclude(states)

    def run_only(self, number: int) -> int:
        """Runs the entry `number`, as a task of an array does. Returns its exit code; 2 need not be tried again."""
        names = list(self.runs)
        if not 0 <= number < len(names):
            raise UserError(f"--only {number}: the sweep has the runs 0 ... {len(names) - 1}")
        name = names[number]
        state, code = _attempt(self.reference(name), self.workdir / name, self.flags(name))
        if state == STOPPED:
            raise Interrupted(signal.SIGTERM)
        return code if code >= 0 else 1

    def submit(self, kind: str, jobs: int | None, parameters: Sequence[str]) -> int:
        """Runs them as jobs of submitit, `jobs` at a time (None: all), and waits for all; see `run`."""
        executor = _executor(kind, self.workdir / "jobs", parameters)
        waiting, running, states = list(self.runs), {}, {}
        with Progress(1, total_steps=len(self.runs)) as progress, _cancelled_on_exit(running):
            progress.start_stage(f"{len(self.runs)} runs ({kind})", len(self.runs), 0)
            while waiting or running:
                while waiting and len(running) < (jobs or len(self.runs)):
                    name = waiting.pop(0)
                    running[name] = _submitted(executor, self.reference(name), self.workdir / name, self.flags(name))
                time.sleep(POLL_SECONDS)
                for name in [name for name, job in running.items() if job.done()]:
                    states[name] = _outcome(name, running.pop(name))
                    self._write(states)
                    progress.advance(1)
            progress.end_stage()
        return self._conclude({name: states[name] for name in self.runs})

    def _write(self, states: Mapping[str, str]) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        write_json(self.workdir / SWEEP, {"config": self.config, "overrides": list(self.overrides), "runs": [
            {"name": name, "overrides": {k: repr(v) for k, v in run.items()}, "state": states.get(name, "not started")}
            for name, run in self.runs.items()]})

    def _conclude(self, states: Mapping[str, str]) -> int:
        done = [self.workdir / name for name in self.runs if states[name] in (DONE, SKIPPED)]
        print_table(("run", "state"), list(states.items()), Console())
        if not done:
            raise UserError(f"all {len(self.runs)} runs of the sweep failed; see output.txt in the folders of "
                            f"{self.workdir}")
        paths = write_report(done, self.workdir)
        terminal_table(done)
        print(f"report: {paths.html}")
        return 0 if len(done) == len(self.runs) else 1


def show_runs(config: str) -> None:
    """Prints number, name and overrides of every run."""
    runs = load_sweep(config)
    rows = [(str(number), name) for number, name in enumerate(run_names(runs))]
    print_table(("number", "run"), rows, Console(), labels=2)


@contextlib.contextmanager
def _cancelled_on_exit(jobs: Mapping[str, Any]) -> Iterator[None]:
    """Jobs that still run when what is inside breaks off are ended: the same command would start them a second time."""
    def stop(*_: object) -> None:
        raise Interrupted(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for job in jobs.values():
            job.cancel(check=False)


@contextlib.contextmanager
def _child(command: Sequence[str], log: IO[str]) -> Iterator[subprocess.Popen]:
    """A process that gets a SIGTERM when this one does, or when submitit warns that a job's time ends (SIGUSR2)."""
    if threading.current_thread() is not threading.main_thread():  # only a main thread may handle signals
        yield subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        return
    # Slurm sends the warning to all processes of the job, and whoever does not handle it dies; a child inherits this.
    before = {signal.SIGUSR2: signal.signal(signal.SIGUSR2, signal.SIG_IGN)}
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    signal.signal(signal.SIGUSR2, lambda *_: process.terminate())
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield process
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _executor(kind: str, folder: Path, parameters: Sequence[str]) -> Any:
    """submitit's executor with the parameters of a job, `key=value`."""
    if kind == "slurm" and shutil.which("srun") is None:
        raise UserError("--executor slurm needs a machine with Slurm (srun is not found)")
    given = dict(parameter.partition("=")[::2] for parameter in parameters)
    if "" in given or not all(given.values()):
        raise UserError(f"--slurm takes KEY=VALUE pairs, not {' '.join(parameters)!r}")
    if given and kind != "slurm":
        raise UserError(f"--slurm {' '.join(parameters)} is for --executor slurm, not for {kind}")
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor local and slurm need submitit: pip install submitit") from error
    values = {key: int(value) if value.isdigit() else value for key, value in given.items()}
    executor = submitit.AutoExecutor(folder=folder, cluster=kind)
    try:
        executor.update_parameters(name="transfer_jax", timeout_min=DAY_MINUTES,
                                   **{f"slurm_{key}": value for key, value in values.items()})
    except NameError as error:  # submitit's word for a parameter that it does not know
        raise UserError(f"--slurm: submitit does not take one of {', '.join(values)}; its parameters are those of "
                        "sbatch, with _ for -") from error
    return executor


def _submitted(executor: Any, config: str, workdir: Path, flags: Sequence[str]) -> Any:
    """The job of one entry."""
    from submitit.core.utils import FailedJobError

    try:
        return executor.submit(run_one, config, workdir, flags)
    except (FailedJobError, OSError) as error:  # a partition that is not there, a controller that does not answer
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"the job of {workdir.name} could not be submitted: {said}") from error


def _outcome(name: str, job: Any) -> str:
    """What `run_one` returned in the job; a job that broke is a failed run."""
    try:
        return job.result()
    except Exception as error:  # noqa: BLE001 - of submitit, of Slurm, or of the run: the others go on in any case
        print(f"{name} failed: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}", file=sys.stderr)
        return FAILED


def run_names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder name for each run, readable and distinct: the last word of every path with its value."""
    names = []
    for run in runs:
        text = ",".join(value if path == ARG else f"{path.rpartition('.')[2]}={value}"
                        for path, value in run.items()) or "default"
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


def runs_of(folder: Path) -> list[Path]:
    """The folder of a finished run, or those of the finished runs of a sweep, in its order; empty without any."""
    if not (folder / SWEEP).is_file():
        return [folder] if finished(folder) else []
    runs = json.loads((folder / SWEEP).read_text())["runs"]
    return [folder / run["name"] for run in runs if finished(folder / run["name"])]


def finished_runs(folder: Path) -> list[Path]:
    """The folder of a finished run, or those of a sweep's runs if all have finished; empty if there is none."""
    if not (folder / SWEEP).is_file():
        return [folder] if finished(folder) else []
    found = [folder / run["name"] for run in json.loads((folder / SWEEP).read_text())["runs"]]
    return found if all(finished(run) for run in found) else []


def run_one(config: str, workdir: Path, flags: Sequence[str]) -> str:
    """Runs one entry in a process of its own; returns its state."""
    return _attempt(config, workdir, flags)[0]


def _attempt(config: str, workdir: Path, flags: Sequence[str]) -> tuple[str, int]:
    """(state, exit code) of an entry."""
    if finished(workdir):
        Workdir(workdir).open(build(ExperimentSpec, load_config(config, flags)), allow_config_change=False)
        return SKIPPED, 0
    workdir.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    code = _train(config, workdir, flags)
    if code == 0 and finished(workdir):
        return DONE, 0
    if code in (0, -signal.SIGTERM):  # the second: before it could save anything
        print(f"{workdir.name} was stopped before its end; the same command continues", file=sys.stderr)
        return STOPPED, 0
    last = (workdir / "output.txt").read_text().strip().splitlines()[-1:]
    print(f"{workdir.name} failed after {time.monotonic() - began:.0f} s (exit code {code}): {' '.join(last)}",
          file=sys.stderr)
    return FAILED, code


def _train(config: str, workdir: Path, flags: Sequence[str]) -> int:
    """The exit code of the training as a command."""
    command = [sys.executable, "-m", "transfer_jax.train", "--config", config, "--workdir", str(workdir),
               *(f"--config.{flag}" for flag in flags)]
    with open(workdir / "output.txt", "a") as log, _child(command, log) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # it saves first
            process.wait()
            raise
