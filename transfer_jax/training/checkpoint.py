"""Checkpoints that are either complete and proven, or not there.

Orbax writes the arrays into a hidden folder; a manifest with the SHA-256 of every file is added; one rename makes the
folder visible under its step number. A folder without a manifest, or whose files differ from it, is damaged: it is
skipped with a warning and the one before is used (orbax alone restores a flipped byte without a word).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from transfer_jax.core.errors import UserError

MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one stage: `folder/<step>/{arrays/, meta.json, manifest.json}`."""

    def __init__(self, folder: str | Path, keep: int = 2, warn: Callable[[str], None] = warnings.warn) -> None:
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.warn = warn

    def save(self, step: int, tree: Any, meta: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint and removes those older than the `keep` newest. The same step again is replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".writing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        hidden = self.folder / f".writing-{step}"
        hidden.mkdir()
        write_tree(hidden / "arrays", tree)
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

    def restore(self, target: Any = None, step: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, tree, meta) of the newest sound checkpoint, or of `step`; None where there is no checkpoint.

        Args:
          target: a tree of arrays or ShapeDtypeStructs with the structure to restore; None gives nested dicts of
            numpy arrays.

        Raises:
          UserError: if the asked step is absent or damaged, or all checkpoints are damaged.
        """
        found = self.steps()
        if step is not None and step not in found:
            raise UserError(f"no checkpoint of step {step} in {self.folder}; there are: {found or 'none'}")
        wanted = [step] if step is not None else found[::-1]
        for number in wanted:
            fault = damage(self.folder / str(number))
            if fault is None:
                path = self.folder / str(number)
                return number, _fitting(path / "arrays", target), json.loads((path / "meta.json").read_text())
            self.warn(f"checkpoint {self.folder / str(number)} is damaged ({fault}); using the one before it")
        if wanted:
            raise UserError(f"every checkpoint in {self.folder} is damaged; remove the folder to start the stage again")
        return None


def _fitting(path: Path, target: Any) -> Any:
    """The arrays in the structure of `target`; another structure or shape is a UserError."""
    misfit = UserError(f"checkpoint {path.parent} was saved under another config, its arrays do not fit this one; use "
                       f"another --workdir, or remove that folder to start the stage again")
    try:
        tree = read_tree(path, target)
    except (ValueError, KeyError, TypeError) as error:  # its checksums are right, so it is the structure
        raise misfit from error
    if target is not None and any(a.shape != b.shape for a, b in
                                  zip(jax.tree.leaves(tree), jax.tree.leaves(target), strict=True)):
        raise misfit
    return tree


def write_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays as an orbax checkpoint."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def read_tree(path: Path, target: Any = None) -> Any:
    """Reads an orbax checkpoint as numpy arrays, in the structure of `target` where given."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        if target is None:
            metadata = checkpointer.metadata(path).item_metadata.tree
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
            return checkpointer.restore(path, restore_args=arguments)
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        return checkpointer.restore(path, item=target, restore_args=arguments)


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
    """Writes JSON so that the file is either the old one or the whole new one, also after a crash."""
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
