"""Checkpoints that are either complete and proven, or not there.

Orbax writes the arrays into a hidden folder, every process its part, while training goes on; a manifest with the
SHA-256 of every file is added; one rename makes the folder visible under its step number. A folder without a manifest,
or whose files differ from it, is damaged: it is skipped with a warning and the one before is used (orbax alone restores
a flipped byte without a word).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from transfer_jax.core import processes
from transfer_jax.core.errors import UserError

MANIFEST = "manifest.json"
WHOLE = "whole"  # in the place of a sharding: a numpy array, whole in every process


class Checkpoints:
    """The checkpoints of one stage: `folder/<step>/{arrays/, meta.json, manifest.json}`.

    `save` returns as soon as the arrays are copied; the files are written behind it. `wait` ends with the files.
    """

    def __init__(self, folder: str | Path, keep: int = 2, warn: Callable[[str], None] = warnings.warn) -> None:
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.warn = warn
        self._writing: _Writing | None = None

    def save(self, step: int, tree: Any, meta: dict[str, Any] | None = None) -> None:
        """Begins to write a checkpoint; then those older than the `keep` newest go, and the same step is replaced.

        Raises:
          UserError: if this or the save before it cannot be written; what was saved earlier stays.
        """
        self.wait()
        hidden = self.folder / f".writing-{step}"
        with _no_fault_of_ours(step, self.folder):
            if processes.primary():
                self.folder.mkdir(parents=True, exist_ok=True)
                for leftover in self.folder.glob(".writing-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                hidden.mkdir()
            processes.barrier("checkpoint")
            checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
            checkpointer.save(hidden / "arrays", ocp.args.PyTreeSave(tree))
        self._writing = _Writing(step, checkpointer, lambda: self._show(step, hidden, meta))

    def wait(self) -> None:
        """Returns when nothing is being written any more; raises what went wrong."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            with _no_fault_of_ours(writing.step, self.folder):
                writing.finish()

    def _show(self, step: int, hidden: Path, meta: dict[str, Any] | None) -> None:
        """Completes a written folder and makes it visible."""
        write_json(hidden / "meta.json", {"step": step, **(meta or {})})
        write_json(hidden / MANIFEST, manifest(hidden))
        target = self.folder / str(step)
        if target.exists():
            shutil.rmtree(target)
        os.replace(hidden, target)
        sync_folder(self.folder)
        for old in self.steps()[:-self.keep]:
            shutil.rmtree(self.folder / str(old))

    def steps(self) -> list[int]:
        """Step numbers of all visible checkpoints, ascending, sound or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.is_dir() and path.name.isdigit())

    def restore(self, target: Any = None, step: int | None = None,
                shardings: Any = None) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, tree, meta) of the newest sound checkpoint, or of `step`; None where there is no checkpoint.

        Args:
          target: a tree of arrays or ShapeDtypeStructs with the structure to restore; None gives nested dicts of
            numpy arrays.
          shardings: a tree like `target` of where each array goes, a sharding or `WHOLE`; then all processes must
            call. None: numpy arrays, whole, for this process alone.

        Raises:
          UserError: if the asked step is absent or damaged, or all checkpoints are damaged.
        """
        self.wait()
        chosen = self._newest_sound(step) if shardings is None else \
            processes.first_says(lambda: self._newest_sound(step))
        if chosen is None:
            return None
        path = self.folder / str(chosen)
        return chosen, _fitting(path / "arrays", target, shardings), json.loads((path / "meta.json").read_text())

    def _newest_sound(self, step: int | None) -> int | None:
        found = self.steps()
        if step is not None and step not in found:
            raise UserError(f"no checkpoint of step {step} in {self.folder}; there are: {found or 'none'}")
        wanted = [step] if step is not None else found[::-1]
        for number in wanted:
            fault = damage(self.folder / str(number))
            if fault is None:
                return number
            self.warn(f"checkpoint {self.folder / str(number)} is damaged ({fault}); using the one before it")
        if wanted:
            raise UserError(f"every checkpoint in {self.folder} is damaged; remove the folder to start the stage again")
        return None


class _Writing:
    """A save that goes on in the background."""

    def __init__(self, step: int, checkpointer: ocp.AsyncCheckpointer, show: Callable[[], None]) -> None:
        self.step = step
        self._checkpointer, self._show = checkpointer, show
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"checkpoint {step}")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._checkpointer.wait_until_finished()
            if processes.primary():
                self._show()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._error = error

    def finish(self) -> None:
        self._thread.join()
        self._checkpointer.close()
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def _no_fault_of_ours(step: int, folder: Path) -> Iterator[None]:
    """A full or read-only disk is told in a sentence. Tensorstore reports it as a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or next(
            (words for words in ("No space left on device", "Read-only file system", "Permission denied",
                                 "Disk quota exceeded") if words in str(error)), None)
        if reason is None:
            raise
        raise UserError(f"the checkpoint of step {step} could not be written to {folder} ({reason}); the ones before "
                        f"it are kept, and the same command continues from them") from error


def _fitting(path: Path, target: Any, shardings: Any = None) -> Any:
    """The arrays in the structure of `target`; another structure or shape is a UserError."""
    misfit = UserError(f"checkpoint {path.parent} was saved under another config, its arrays do not fit this one; use "
                       f"another --workdir, or remove that folder to start the stage again")
    try:
        tree = read_tree(path, target, shardings)
    except (ValueError, KeyError, TypeError) as error:  # its checksums are right, so it is the structure
        raise misfit from error
    if target is not None and any(a.shape != b.shape for a, b in
                                  zip(jax.tree.leaves(tree), jax.tree.leaves(target), strict=True)):
        raise misfit
    return tree


def read_tree(path: Path, target: Any = None, shardings: Any = None) -> Any:
    """Reads an orbax checkpoint in the structure of `target` where given: to the `shardings` (by all processes), or as
    whole numpy arrays (by each for itself)."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) if shardings is not None else _alone() as checkpointer:
        if target is None:
            target = checkpointer.metadata(path).item_metadata.tree
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
            return checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=arguments))
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        if shardings is not None:
            arguments = jax.tree.map(_restored_to, arguments, shardings)
        return checkpointer.restore(path, ocp.args.PyTreeRestore(item=target, restore_args=arguments))


def _restored_to(whole: ocp.RestoreArgs, sharding: Any) -> ocp.RestoreArgs:
    return whole if sharding == WHOLE else ocp.ArrayRestoreArgs(sharding=sharding)


def _alone() -> ocp.Checkpointer:
    """A checkpointer that waits for no other process."""
    options = ocp.options.MultiprocessingOptions()
    if processes.count() > 1:
        me = jax.process_index()
        options = ocp.options.MultiprocessingOptions(me, {me}, f"alone{me}")
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
                            multiprocessing_options=options)


def manifest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the manifest itself."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST}


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, in words, or None."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return "no manifest"
    except (json.JSONDecodeError, UnicodeDecodeError):
        return "unreadable manifest"
    if not isinstance(expected, dict) or "meta.json" not in expected:
        return "incomplete manifest"
    actual = manifest(folder)
    for name, digest in expected.items():
        if name not in actual:
            return f"{name} is missing"
        if actual[name] != digest:
            return f"{name} does not match its checksum"
    return None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is either the old one or the whole new one, also after a crash; its folder is
    made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.writing")
    with open(hidden, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(hidden, path)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
