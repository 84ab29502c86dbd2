"""Starts the processes of a small experiment, waits for a moment of it, and compares what runs leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from tiny_experiment import ROOT, config, read_json, write_config

from transfer_jax.training.checkpoint import Checkpoints
from transfer_jax.training.writers import read_metrics

STEPS = {"pretrain": 15, "finetune": 40}
KILLED = -signal.SIGKILL
FAILED_BY_ANOTHER = 3


def write_images(folder: Path) -> Path:
    """scikit-learn's digits as class folders of images: 200 for training, 40 for testing."""
    found = load_digits()
    for number in range(240):
        name = folder / ("train" if number < 200 else "test") / str(found.target[number]) / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(found.images[number] * 255 / 16).astype(np.uint8)).save(name)
    return folder


def write_experiment(folder: Path) -> Path:
    """Two stages that read images while they train, with BatchNorm, an average and dropout."""
    data = {"kind": "folder", "path": str(write_images(folder / "images"))}
    values = config(folder, {
        "checkpoint_every": 5, "heartbeat_seconds": 20, "model.backbones.backbone.norm": "batch",
        "model.heads.digits": {"kind": "mlp", "hidden": (8,), "dropout": 0.5},
        "streams.train": {"data": data, "batch_size": 16, "domain": "plain", "storage": "host", "threads": 2,
                          "on_bad_example": "error"},
        "streams.test": {"data": data, "split": "test", "batch_size": 16, "domain": "plain", "storage": "device"},
        "stages.finetune.ema": {"decay": 0.9}, "stages.finetune.eval_every": 20,
        "stages.finetune.init": "pretrain", "model.backbones.backbone.widths": (4,)})
    values["stages"] = {name: {**values["stages"][name], "steps": steps} for name, steps in STEPS.items()}
    return write_config(folder, values)


@dataclass
class Child:
    """A process that the nursery has forked."""

    pid: int
    output: Path
    nursery: Nursery
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.nursery.ask({"pid": self.pid})
        return self.code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def text(self) -> str:
        """What it wrote, with every run of white space as one space."""
        return " ".join(self.output.read_text(errors="replace").split())


class Nursery:
    """See nursery.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "500",
                       "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
        self._process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("nursery.py"))], cwd=ROOT,
                                         env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, request: dict[str, Any]) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def fork(self, arguments: Sequence[Any], devices: int, inject: Sequence[Sequence[Any]]) -> Child:
        self._count += 1
        output = self.folder / f"output-{self._count}.txt"
        pid = self.ask({"arguments": [str(value) for value in arguments], "devices": devices, "inject": list(inject),
                        "output": str(output)})
        return Child(pid, output, self)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


@dataclass
class Team:
    """The processes of one run."""

    children: list[Child]
    workdir: Path
    began: float = field(default_factory=time.monotonic)

    def codes(self) -> list[int | None]:
        return [child.poll() for child in self.children]

    def reach(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        """Returns when `happened()`; all processes must run until then."""
        until = time.monotonic() + seconds
        while not happened():
            if any(code is not None for code in self.codes()) or time.monotonic() > until:
                raise AssertionError(f"ended, or took too long: {self.codes()}\n{self.texts()}")
            time.sleep(0.001)

    def reach_first_end(self, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while all(code is None for code in self.codes()) and time.monotonic() < until:
            time.sleep(0.01)

    def end(self, seconds: float = 120) -> list[int]:
        """The exit codes of all; none may hang. Those that are stopped are no hang of ours."""
        until = time.monotonic() + seconds
        while None in self.codes():
            if time.monotonic() > until:
                codes = self.codes()
                self.send(signal.SIGUSR1)
                time.sleep(1)
                self.send(signal.SIGKILL)
                raise AssertionError(f"a process hangs: {codes}\n{self.texts()}")
            time.sleep(0.01)
        return self.codes()

    def send(self, number: int, which: Sequence[int] | None = None) -> None:
        for index in range(len(self.children)) if which is None else which:
            self.children[index].send(number)

    def texts(self) -> str:
        return "\n".join(f"[{child.code}] {child.text[-3000:]}" for child in self.children)

    def steps(self, stage: str) -> list[int]:
        return Checkpoints(self.workdir / "checkpoints" / stage).steps()

    def saving(self, stage: str) -> bool:
        return any((self.workdir / "checkpoints" / stage).glob(".writing-*"))


@dataclass
class Experiment:
    """A config file and the means to run it."""

    config: Path
    nursery: Nursery

    def begin(self, workdir: Path, processes: int = 1, devices: int = 1, *flags: Any,
              inject: dict[int, Sequence[Sequence[Any]]] | None = None) -> Team:
        """Starts it in `processes` processes; `inject`: process -> calls of injected.py."""
        together = [] if processes == 1 else ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", processes]
        common = ["--config", self.config, "--workdir", workdir, *flags, *together]
        return Team([self.nursery.fork([*common, *(["--process", number] if together else [])], devices,
                                       (inject or {}).get(number, ())) for number in range(processes)], workdir)

    def finish(self, workdir: Path, processes: int = 1, devices: int = 1) -> Team:
        """Runs it to its end."""
        team = self.begin(workdir, processes, devices)
        assert team.end() == [0] * processes, team.texts()
        return team


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def left_behind(workdir: Path) -> tuple[bytes, bytes, Any]:
    """The measured bytes, the exported parameters and the results of a finished run."""
    return ((workdir / "metrics.jsonl").read_bytes(), (workdir / "model" / "parameters.safetensors").read_bytes(),
            read_json(workdir / "results.json"))


def assert_same_end(workdir: Path, reference: Path) -> None:
    for name, one, other in zip(("metrics", "parameters", "results"), left_behind(workdir), left_behind(reference),
                                strict=True):
        assert one == other, f"{name} of {workdir} differ from those of a run that was never stopped"


def assert_close_end(workdir: Path, reference: Path) -> None:
    """The same lines, without gap or double, with losses equal to 1e-5."""
    one, other = read_metrics(workdir), read_metrics(reference)
    assert [place_of(line) for line in one] == [place_of(line) for line in other]
    losses = [[line["metrics"]["loss"] for line in lines if line["kind"] == "train"] for lines in (one, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def place_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["stage"], line["step"], line["kind"], line.get("stream")
