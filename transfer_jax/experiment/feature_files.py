"""Features on disk: a folder of shards with a manifest, written as they come and readable from the first shard on.

`manifest.json` says what the features are of (`description`, whose hash is the `key`), which columns belong to which
tap, and lists the shards with their hashes; a shard counts when it stands there. `shard-00000.safetensors` ... hold `x`
float32 [n, D], `index` int32 [n] (row of the data set) and, for labelled streams, `y` int32 [n]; `names.json` says
where each example lies.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.training.checkpoint import write_json

MANIFEST, NAMES = "manifest.json", "names.json"


def key_of(description: Mapping[str, Any]) -> str:
    """The hash of what features are of."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


class Features:
    """Complete features of a stream, read when first asked for.

    Attributes:
        columns: tap -> (first, last + 1) of its columns.
        class_names: of the labels.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if self.manifest is None:
            raise UserError(f"{self.folder} holds no features ({MANIFEST} is missing); make some with python -m "
                            f"transfer_jax.embed")
        if not self.manifest["complete"]:
            raise UserError(f"the features in {self.folder} are not complete; run the command that makes them again")
        self.columns = {tap: tuple(ends) for tap, ends in self.manifest["columns"].items()}
        self.class_names = tuple(self.manifest["class_names"])

    def __len__(self) -> int:
        return sum(shard["rows"] for shard in self.manifest["shards"])

    @property
    def width(self) -> int:
        """Columns of all taps."""
        return max(last for _, last in self.columns.values())

    @functools.cached_property
    def x(self) -> np.ndarray:
        """float32 [N, D], all taps side by side."""
        return self._column("x", (self.width,), np.float32)

    @functools.cached_property
    def y(self) -> np.ndarray:
        """int32 [N]; a UserError where the stream has none."""
        if not self.manifest["labelled"]:
            raise UserError(f"the features in {self.folder} have no labels: their stream gives none")
        return self._column("y", (), np.int32)

    @functools.cached_property
    def index(self) -> np.ndarray:
        """int32 [N], the row of each example in its data set."""
        return self._column("index", (), np.int32)

    @functools.cached_property
    def names(self) -> list[str]:
        """Where each example lies."""
        return json.loads((self.folder / NAMES).read_text())

    def tap(self, name: str) -> np.ndarray:
        """float32 [N, d], the columns of one tap."""
        if name not in self.columns:
            raise unknown("tap", name, self.columns, str(self.folder))
        return self.x[:, slice(*self.columns[name])]

    def shards(self) -> Iterator[dict[str, np.ndarray]]:
        """One shard after the other, for features that do not fit into memory; each is checked against its hash."""
        for shard in self.manifest["shards"]:
            yield _read(self.folder / shard["file"], shard["sha256"])

    def _column(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        whole, place = np.empty((len(self), *shape), dtype), 0
        for shard in self.shards():
            whole[place:place + len(shard[name])] = shard[name]
            place += len(shard[name])
        return whole


class Writer:
    """Writes the shards of one set of features; knows what an earlier process has left."""

    def __init__(self, folder: Path, description: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Takes `folder` up, or begins it.

        Args:
            plan: what must agree for shards to be continued (batch size, batches a shard) and what readers need.
        """
        self.folder = folder
        fresh = {"key": key_of(description), "description": dict(description), **plan, "shards": [], "complete": False}
        found = read_manifest(folder)
        same = found is not None and found["key"] == fresh["key"] and all(
            found[name] == value for name, value in plan.items())
        self.manifest = found if same else json.loads(json.dumps(fresh))
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def done(self) -> int:
        """Shards that are there already."""
        return len(self.manifest["shards"])

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the next shard: first its file, then its line in the manifest."""
        name = f"shard-{self.done:05d}.safetensors"
        data = save({key: np.ascontiguousarray(value) for key, value in arrays.items()})
        hidden = self.folder / f".{name}.writing"
        with open(hidden, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, self.folder / name)
        self.manifest["shards"].append({"file": name, "rows": len(arrays["index"]),
                                        "sha256": hashlib.sha256(data).hexdigest()})
        write_json(self.folder / MANIFEST, self.manifest)

    def finish(self, names: Mapping[int, str]) -> Features:
        """Marks the features as complete; `names` says where the row of a data set lies."""
        rows = [_read(self.folder / shard["file"], shard["sha256"])["index"] for shard in self.manifest["shards"]]
        write_json(self.folder / NAMES, [names[int(row)] for row in np.concatenate(rows)])
        self.manifest["complete"] = True
        write_json(self.folder / MANIFEST, self.manifest)
        return Features(self.folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text())
        if not {"key", "description", "columns", "shards", "complete"} <= set(found):
            raise ValueError("it is not the manifest of features")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be used ({error}); give another folder, or remove it") from error


def _read(path: Path, digest: str) -> dict[str, np.ndarray]:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("its contents do not match their hash")
        return load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); remove the folder and embed again") from error
