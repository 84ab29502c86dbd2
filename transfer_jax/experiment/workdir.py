"""What a run leaves behind, and the rules under which it may be continued.

`config.json`, `params.txt`, `metrics.jsonl`, `tensorboard/`, `checkpoints/<stage>/<step>/`, `predictions/<stage>/`,
`stages/<stage>.json` (written last: its presence means that the stage is done), `stages.json`, `results.json`,
`model/`, `report.md`, `report.html`.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transfer_jax.core.config import differences
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.training.checkpoint import Checkpoints, write_json

# Settings that change how a run is carried out, never what it computes.
FREE_TO_CHANGE = ("report", "checkpoint_every", "keep_checkpoints", "steps_per_dispatch", "compilation_cache", "mesh",
                  "parallel", "lanes", "sharding", "frozen_sharding", "heartbeat_seconds", "export")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # only writing meets these


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """What is inside writes in the workdir `path`: a disk that is full or read-only is told in a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(f"{error.filename or path} could not be written: {error.strerror}; make room, the same command "
                        f"continues from the last checkpoint") from error


class Workdir:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open(self, spec: ExperimentSpec, allow_config_change: bool) -> None:
        """Starts the folder, or checks that it holds a run of the same configuration."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the workdir {self.path} cannot be made: {error.strerror}; choose another") from error
        new = json.loads(spec.model_dump_json())
        old = self.read_json("config.json")
        if old is not None and self.in_use and not allow_config_change:
            lines = [line for line in differences(_with_defaults(old), new)
                     if line.split(":")[0].split(".")[0] not in FREE_TO_CHANGE]
            if lines:
                raise UserError(f"{self.path} holds a run with another config ({'; '.join(lines[:8])}"
                                f"{'; ...' if len(lines) > 8 else ''}); use another --workdir, or continue all the "
                                f"same with --allow_config_change")
        try:
            write_json(self.path / "config.json", new)
        except OSError as error:
            raise UserError(f"nothing can be written in the workdir {self.path}: {error.strerror}; choose another, or "
                            f"make room") from error

    @property
    def in_use(self) -> bool:
        """Whether a run has left more here than its configuration, which a faulty one does, too."""
        metrics = self.path / "metrics.jsonl"
        return any((self.path / name).exists() for name in ("checkpoints", "stages")) or (
            metrics.is_file() and metrics.stat().st_size > 0)

    def check_shared(self) -> None:
        """Raises UserError in a process that does not see what process 0 wrote."""
        if not (self.path / "config.json").is_file():
            raise UserError(f"process 0 has started the workdir {self.path.absolute()}, but this process does not see "
                            f"it; the workdir must lie on a file system that all processes share")

    def spec(self) -> ExperimentSpec:
        """The experiment that the folder holds."""
        config = self.read_json("config.json")
        if config is None:
            raise UserError(f"{self.path} holds no run (config.json is missing)")
        return build(ExperimentSpec, config)

    def read_json(self, name: str) -> Any:
        """A JSON file of the folder, or None where it is absent."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged ({error}); restore it or remove it") from error

    def checkpoints(self, stage: str, keep: int = 2, warn: Callable[[str], None] = print) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints" / stage, keep, warn)

    def record(self, stage: str) -> dict[str, Any] | None:
        """What was written when the stage ended, or None if it has not."""
        return self.read_json(f"stages/{stage}.json")

    def has_begun(self, stage: str) -> bool:
        """Whether the stage has ended or left a checkpoint."""
        return self.record(stage) is not None or bool(self.checkpoints(stage).steps())

    def finish(self, stage: str, info: dict[str, Any], results: list[dict[str, Any]]) -> None:
        """Marks a stage as done."""
        (self.path / "stages").mkdir(exist_ok=True)
        write_json(self.path / "stages" / f"{stage}.json", {"info": info, "results": results})

    def collect(self, stages: Sequence[str]) -> None:
        """Writes `stages.json`, `results.json` and `params.txt` from the records of the stages done so far."""
        records = {stage: record for stage in stages if (record := self.record(stage)) is not None}
        write_json(self.path / "stages.json", {stage: record["info"] for stage, record in records.items()})
        write_json(self.path / "results.json", [row for record in records.values() for row in record["results"]])


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config with the settings that came into being after it was written, at their defaults."""
    try:
        return json.loads(build(ExperimentSpec, config).model_dump_json())
    except UserError:  # it has a setting that is gone: that is a difference to tell of
        return config
