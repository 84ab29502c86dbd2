"""Kills processes of runs at random moments, starts them again, and counts what came of it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness import FAILED_BY_ANOTHER, KILLED, STEPS, Experiment, Team, assert_same_end

from transfer_jax.training.checkpoint import damage

KILLS_OF_A_RUN = 8  # at most, before it may go on to its end and is compared
TWO_PROCESSES = 0.2  # the part of the runs that two processes share
ANSWER = 45  # seconds within which a survivor ends: the heartbeat time of 20 and what a loaded machine takes


class Kills:
    """A campaign of random kills.

    Args:
      references: number of processes -> workdir of a run that was never stopped.
      seconds: number of processes -> how long such a run takes, with what it needs already compiled.
      out: the file of the counts, written after every kill.
    """

    def __init__(self, experiment: Experiment, references: dict[int, Path], seconds: dict[int, float], folder: Path,
                 out: Path, seed: int) -> None:
        self.experiment, self.references, self.seconds = experiment, references, seconds
        self.folder, self.out, self.seed = folder, out, seed
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._began = time.monotonic()

    def run(self, kills: int) -> None:
        """Goes on until so many processes or groups of them were killed and the last run has come to its end."""
        number = 0
        while self.counts["kills"] < kills:
            workdir = self.folder / f"run-{number}"
            processes = 2 if self.random.random() < TWO_PROCESSES else 1
            try:
                self._one_run(workdir, processes, kills)
                shutil.rmtree(workdir)
            except AssertionError as error:  # its folder stays, to be looked at
                self.failures.append(f"{workdir.name}: {str(error)[:4000]}")
            number += 1
            self._write()

    def _one_run(self, workdir: Path, processes: int, kills: int) -> None:
        for _ in range(self.random.randint(1, KILLS_OF_A_RUN)):
            if self.counts["kills"] == kills or not self._killed(workdir, processes):
                break
            self._write()
        self.experiment.finish(workdir, processes)
        self.counts["runs compared"] += 1
        assert_same_end(workdir, self.references[processes])
        self.counts["runs bit-identical"] += 1

    def _killed(self, workdir: Path, processes: int) -> bool:
        """Starts the run and kills it somewhere; False if it was done before."""
        before = newest(workdir)
        lines, leftovers = size(workdir / "metrics.jsonl"), writing(workdir)
        team = self.experiment.begin(workdir, processes)
        until = time.monotonic() + self.random.uniform(0, self.seconds[processes])
        while time.monotonic() < until and None in team.codes():
            time.sleep(0.002)
        if None not in team.codes():
            assert team.codes() == [0] * processes, team.texts()
            return False
        phase = phase_of(workdir, lines, leftovers)
        victims = self.random.choice([[0], [1], [0, 1]]) if processes == 2 else [0]
        if "Gloo" not in team.children[0].text:  # not joined yet: one that is alone waits minutes for the other
            victims = list(range(processes))
        team.send(signal.SIGKILL, victims)
        self._check(team, victims, before)
        if KILLED not in team.codes():  # it had just come to its end
            return False
        self.counts["kills"] += 1
        self.counts[f"phase: {phase}"] += 1
        self.counts["victim: " + name_of(victims, processes)] += 1
        return True

    def _check(self, team: Team, victims: list[int], before: dict[str, int]) -> None:
        """Survivors end by themselves and say why; what was saved is still there, and sound."""
        killed = time.monotonic()
        codes = team.end(ANSWER)
        for index, code in enumerate(codes):
            expected = (KILLED, 0) if index in victims else (FAILED_BY_ANOTHER, 0)  # 0: it had just come to its end
            assert code in expected, f"process {index} ended with {code}\n{team.texts()}"
            if code == FAILED_BY_ANOTHER:
                assert "error: process" in team.children[index].text, team.texts()
                self.counts["survivors ended"] += 1
                slowest = max(self.counts["slowest survivor, ms"], round(1000 * (time.monotonic() - killed)))
                self.counts["slowest survivor, ms"] = slowest
        measured, whole = (measured_by(path) for path in (team.workdir, self.references[len(team.children)]))
        assert whole.startswith(measured), f"{team.workdir}: a gap, a double or other numbers in metrics.jsonl"
        after = newest(team.workdir)
        assert all(after.get(stage, -1) >= step for stage, step in before.items()), f"lost: {before} -> {after}"
        for stage, step in after.items():
            fault = damage(team.workdir / "checkpoints" / stage / str(step))
            assert fault is None, f"a visible checkpoint is damaged: {stage} {step}, {fault}"

    def _write(self) -> None:
        found: dict[str, Any] = {"seed": self.seed, "minutes": round((time.monotonic() - self._began) / 60, 1),
                                 "counts": dict(sorted(self.counts.items())), "failures": self.failures}
        self.out.write_text(json.dumps(found, indent=1) + "\n")


def newest(workdir: Path) -> dict[str, int]:
    """Stage -> the step of its newest visible checkpoint."""
    found = {}
    for stage in STEPS:
        folder = workdir / "checkpoints" / stage
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
        if steps:
            found[stage] = max(steps)
    return found


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def measured_by(workdir: Path) -> bytes:
    path = workdir / "metrics.jsonl"
    return path.read_bytes() if path.is_file() else b""


def writing(workdir: Path) -> set[tuple[int, int]]:
    """The hidden folders of saves; one that is removed and made anew is another one."""
    found = set()
    for path in (workdir / "checkpoints").glob("*/.writing-*"):
        with contextlib.suppress(FileNotFoundError):  # it has just become visible
            found.add((path.stat().st_ino, path.stat().st_ctime_ns))
    return found


def phase_of(workdir: Path, lines: int, leftovers: set[tuple[int, int]]) -> str:
    """What a run is doing, as its folder shows. When it was started: `lines`, the size of its metrics, and `leftovers`,
    the hidden folders of saves that an earlier kill has broken off."""
    if writing(workdir) - leftovers:
        return "saving"
    if all((workdir / "stages" / f"{stage}.json").is_file() for stage in STEPS):
        return "reporting"
    return "training" if size(workdir / "metrics.jsonl") > lines else "starting"


def name_of(victims: list[int], processes: int) -> str:
    if processes == 1:
        return "the only process"
    return {(0,): "the coordinator of two", (1,): "the worker of two", (0, 1): "both"}[tuple(victims)]
