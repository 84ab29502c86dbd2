"""Metrics on disk: `metrics.jsonl` (exact, deterministic, restartable) and TensorBoard events (to look at).

`metrics.jsonl` holds one JSON object a line, in the order of training:

    {"stage": s, "step": n, "kind": "train" | "eval", "stream": str (eval only), "metrics": {name: [value per seed]}}

Nothing in it depends on the clock or the machine, so a resumed run leaves the very bytes of an unbroken one. A value
that is not finite is written as null, because JSON has no NaN, and named in an added entry
`"nonfinite": {name: [null | "nan" | "inf" | "-inf" per seed]}`; `read_metrics` puts it back.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from transfer_jax.core import errors

METRICS_FILE = "metrics.jsonl"
VALIDATED = "validator/"  # how the names of metrics begin that need no label of their stream
EVENTS_FOLDER = "tensorboard"
SECONDS_PER_FLUSH = 10  # of the events, for those who watch them


class MetricWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard events below `workdir/tensorboard/<stage>/`.

    Steps count finished updates: the line of step n was measured with the parameters after n updates. Call `flush`
    before a checkpoint is declared complete and `rewind` when one is restored: then no line is lost or doubled.

    Args:
        workdir: folder of the run, made if missing.
        tensorboard: also write events (by tensorboardX, imported at the first write).
        per_seed: also write one TensorBoard run per seed (`<stage>/seed<i>`), not only the mean over seeds.
        enabled: False on every process but the first, where all methods then do nothing.
    """

    def __init__(self, workdir: str | os.PathLike, tensorboard: bool = True, per_seed: bool = False,
                 enabled: bool = True):
        self.path = Path(workdir) / METRICS_FILE
        self._events = _Events(Path(workdir) / EVENTS_FOLDER, per_seed) if tensorboard and enabled else None
        self._enabled = enabled
        self._file: IO[str] | None = None
        if enabled:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, stage: str, step: int, kind: str, metrics: Mapping[str, Any], stream: str | None = None) -> None:
        """Appends one line. `metrics` maps names to a scalar or a vector [S], one value per seed."""
        if not self._enabled:
            return
        if (kind, stream is None) not in (("train", True), ("eval", False)):
            raise ValueError(f"kind {kind!r} with stream {stream!r}: 'train' takes no stream, 'eval' needs one")
        values = {name: np.atleast_1d(np.asarray(metrics[name])) for name in sorted(metrics)}
        if self._file is None:
            self._file = self._open()
        self._file.write(encode_line(stage, int(step), kind, values, stream) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(stage, int(step), "train" if stream is None else f"eval/{stream}", values)

    def flush(self) -> None:
        """Forces everything written so far onto the disk (fsync): call it before committing a checkpoint."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def rewind(self, stage: str, step: int, finished: Collection[str] | None = None) -> int:
        """Forgets everything after step `step` of `stage`, as if the run had been stopped there; -> lines dropped.

        Args:
            stage: the stage that will go on.
            step: the last step that counts (that of the restored checkpoint); -1 drops the stage altogether.
            finished: stages whose lines stay. By default those that appear in the file before `stage` does, or, if
                `stage` has no line yet, all of them.
        """
        if not self._enabled:
            return 0
        self._close_file()
        lines = _complete_lines(self.path)
        order = list(dict.fromkeys(line["stage"] for _, line in lines))
        if finished is None:
            finished = order[:order.index(stage)] if stage in order else order
        kept = [text for text, line in lines
                if (line["step"] <= step if line["stage"] == stage else line["stage"] in finished)]
        if self.path.exists():
            _replace(self.path, "".join(text + "\n" for text in kept))
        if self._events is not None:
            self._events.rewind(stage, step, finished)
        return len(lines) - len(kept)

    def end_stage(self, stage: str, order: Sequence[str]) -> None:
        """Closes what is open for a stage that has ended, and puts the lines of the file in the `order` of stages:
        those of stages that trained in parallel came as they were written."""
        if not self._enabled:
            return
        if self._events is not None:
            self._events.close(stage)
        lines = _complete_lines(self.path)
        numbers = {name: number for number, name in enumerate(order)}
        places = [numbers.get(line["stage"], -1) for _, line in lines]
        if places != sorted(places):
            self._close_file()
            _replace(self.path, "".join(lines[i][0] + "\n" for i in np.argsort(places, kind="stable")))

    def close(self) -> None:
        """Flushes and closes the files; a later `write` opens them again."""
        self.flush()
        self._close_file()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> IO[str]:
        # A process killed in the middle of a write leaves half a line: the next line must not be glued to it.
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            _replace(self.path, "".join(text + "\n" for text, _ in _complete_lines(self.path)))
        return open(self.path, "a", encoding="utf-8")

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def encode_line(stage: str, step: int, kind: str, values: Mapping[str, np.ndarray], stream: str | None = None) -> str:
    """One line of `metrics.jsonl`, without its newline; `values` maps names to vectors [S] of any numeric type."""
    line: dict[str, Any] = {"stage": stage, "step": step, "kind": kind}
    if stream is not None:
        line["stream"] = stream
    line["metrics"] = {name: [_number(x) for x in vector] for name, vector in values.items()}
    odd = {name: [None if math.isfinite(x) else str(float(x)) for x in vector]
           for name, vector in values.items() if not np.isfinite(vector.astype(np.float64)).all()}
    if odd:
        line["nonfinite"] = odd
    return json.dumps(line, ensure_ascii=False, allow_nan=False)


def decode_line(text: str) -> dict[str, Any]:
    """The inverse of `encode_line`: floats that are not finite come back as floats. Raises ValueError or KeyError."""
    line = json.loads(text)
    for key in ("stage", "step", "kind", "metrics"):
        line[key]  # noqa: B018  (a line without them is damaged)
    for name, marks in line.pop("nonfinite", {}).items():
        pairs = zip(line["metrics"][name], marks, strict=True)
        line["metrics"][name] = [value if mark is None else float(mark) for value, mark in pairs]
    return line


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """All lines of `workdir/metrics.jsonl` as dictionaries; a half-written last line is left out.

    Raises:
        UserError: the file is missing, or a whole line cannot be read.
    """
    path = Path(workdir) / METRICS_FILE
    if not path.exists():
        raise errors.UserError(f"{path} is missing; give the folder of a run that has started training")
    return [line for _, line in _complete_lines(path)]


def _number(value: Any) -> float | int | None:
    """The shortest decimal that reads back as the same number in its own precision; None unless finite."""
    if np.issubdtype(type(value), np.integer) or isinstance(value, bool | np.bool_):
        return int(value)
    if not math.isfinite(value):
        return None
    return float(str(value))


def _complete_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(text, parsed) of every line that ends with a line feed; raises UserError for one that cannot be read."""
    if not path.exists():
        return []
    # Split at line feeds only: JSON strings may hold other characters that `splitlines` would break at.
    *texts, _unfinished = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append((text, decode_line(text)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.UserError(f"{path}, line {number} is damaged; restore the file, or delete it to go on "
                                   "without the curves measured so far") from error
    return lines


def _replace(path: Path, text: str) -> None:
    """Writes `path` so that a crash at any moment leaves the old content or the new one, never a mixture."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _Events:
    """TensorBoard events: run `<stage>` holds the mean over seeds, `<stage>/seed<i>` (if wanted) each seed."""

    def __init__(self, folder: Path, per_seed: bool):
        self._folder = folder
        self._per_seed = per_seed
        self._writers: dict[str, Any] = {}
        self._purge: dict[str, int] = {}

    def write(self, stage: str, step: int, prefix: str, values: Mapping[str, np.ndarray]) -> None:
        for name, vector in values.items():
            tag = f"{prefix}/{name}"
            self._writer(stage).add_scalar(tag, float(np.mean(vector, dtype=np.float64)), step)
            if self._per_seed and len(vector) > 1:
                for seed, value in enumerate(vector):
                    self._writer(f"{stage}/seed{seed}").add_scalar(tag, float(value), step)

    def rewind(self, stage: str, step: int, finished: Collection[str]) -> None:
        """Hides the events after `step`: an event file cannot be shortened, its readers obey a purge mark."""
        self.close()
        for path in self._folder.rglob("events.out.tfevents.*"):
            run = path.parent.relative_to(self._folder).as_posix()
            owner = run.split("/")[0]
            if owner == stage or owner not in finished:
                self._purge[run] = step + 1 if owner == stage else 0
        for run in list(self._purge):
            self._writer(run).flush()

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self, stage: str | None = None) -> None:
        """Closes the files of a stage, or all."""
        for run in [run for run in self._writers if stage in (None, run.split("/")[0])]:
            self._writers.pop(run).close()

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            folder = self._folder / run
            # Files of one run are read in the order of their names: the count keeps two of the same second apart.
            count = len(list(folder.glob("events.out.tfevents.*")))
            self._writers[run] = _EventFile(folder, f".{count:04d}", self._purge.pop(run, None))
        return self._writers[run]


class _EventFile:
    """One event file, written by the thread that calls: tensorboardX's own writer leaves that to a thread which a full
    disk ends, and then waits for it for ever."""

    def __init__(self, folder: Path, suffix: str, purge_step: int | None):
        self._proto, self._scalar, file = _tensorboard_parts()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = file(str(folder / "events"), suffix)
        self._flushed = time.monotonic()
        if purge_step is not None:
            self._add(step=purge_step, file_version="brain.Event:2")
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            self._add(step=purge_step, session_log=start)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._add(step=step, summary=self._scalar(tag, value))
        if time.monotonic() - self._flushed > SECONDS_PER_FLUSH:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        self._file.write_event(self._proto.Event(wall_time=time.time(), **fields))


def _tensorboard_parts() -> tuple[Any, Any, Any]:
    """tensorboardX's messages, its scalar and its file, without PyTorch: it imports that where it can, for seconds,
    and we never give it tensors.

    Imported at the first use, because those who only read need none.
    """
    blocked = "torch" not in sys.modules
    if blocked:
        sys.modules["torch"] = None  # an import of it fails as if it were not installed
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar
    finally:
        if blocked:
            del sys.modules["torch"]
    return event_pb2, scalar, EventsWriter
