"""Flax: msgpack files of `flax.serialization.to_bytes`, and orbax folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import msgpack
import numpy as np
from flax import serialization

from transfer_jax.pretrained.formats.nested import Flattened
from transfer_jax.pretrained.formats.tensor_file import (
    EXTENDED,
    MEBIBYTE,
    TensorFile,
    array_of,
    damaged,
    is_numeric,
    shown,
)

ARRAY, COMPLEX, SCALAR = 1, 2, 3  # Flax's extension codes
CHUNKED = "__msgpack_chunked_array__"
SPARE_NODES = 10_000
LARGEST_EXPANSION = 200  # of an orbax folder, whose chunks are compressed
ORBAX_FILES = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
ORBAX_ITEMS = ("default", "state", "params", "model")  # how the folder of one step calls its tree


def read_msgpack(path: Path, where: str) -> TensorFile:
    """A nested dictionary of arrays, as Flax writes it."""
    data = path.read_bytes()

    def extension(code: int, content: bytes) -> Any:
        if code in (ARRAY, SCALAR):
            return _packed_array(content, where)
        if code == COMPLEX:
            return complex(*msgpack.unpackb(content))
        raise ValueError(f"it has the unknown extension {code}")

    try:
        tree = msgpack.unpackb(data, ext_hook=extension, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError, OverflowError,
            MemoryError) as error:
        raise damaged(where, f"it is no msgpack file of Flax ({shown(error)})") from error
    if not isinstance(tree, dict):
        raise damaged(where, "its content is not a dictionary of arrays")
    flat = Flattened(_joined_chunks(tree, where), where, SPARE_NODES + len(data))
    return TensorFile(flat.tensors, flat.metadata, "msgpack")


def _packed_array(content: bytes, where: str) -> np.ndarray:
    shape, kind, data = msgpack.unpackb(content, raw=False)
    dtype = EXTENDED[kind] if kind in EXTENDED else np.dtype(kind)
    if not is_numeric(dtype) or not isinstance(data, bytes):
        raise ValueError("an array holds no numbers")
    return array_of(data, dtype, shape, where, "an array")


def _joined_chunks(tree: Any, where: str) -> Any:
    """Arrays that Flax cut up because msgpack's values are limited to 4 GiB, in one piece again."""
    if not isinstance(tree, dict):
        return tree
    if CHUNKED not in tree:
        return {key: _joined_chunks(value, where) for key, value in tree.items()}
    shape, chunks = ([part[str(index)] for index in range(len(part))] for part in (tree["shape"], tree["chunks"]))
    joined = np.concatenate([np.ravel(chunk) for chunk in chunks])
    if math.prod(shape) != joined.size:
        raise damaged(where, "the pieces of an array do not fit its shape")
    return joined.reshape(shape)


def is_orbax(folder: Path) -> bool:
    """Whether `folder` is an orbax checkpoint, of a tree or of a step."""
    return any((folder / name).is_file() for name in ORBAX_FILES)


def read_orbax(folder: Path, where: str) -> TensorFile:
    """The tree of an orbax folder as NumPy arrays; lists become levels with numbers as names."""
    import orbax.checkpoint as orbax  # slow to import, and seldom needed

    item = folder
    if not (folder / "_METADATA").is_file():
        item = next((folder / name for name in ORBAX_ITEMS if is_orbax(folder / name)), folder)
    checkpointer = orbax.PyTreeCheckpointer()
    try:
        described = checkpointer.metadata(item.resolve()).item_metadata.tree
        _check_sizes(described, folder, where)
        as_numpy = jax.tree.map(lambda _: orbax.RestoreArgs(restore_type=np.ndarray), described)
        tree = checkpointer.restore(item.resolve(), restore_args=as_numpy)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError, OverflowError, MemoryError,
            IndexError, NotImplementedError) as error:
        raise damaged(where, f"orbax cannot read it ({shown(error)})") from error
    flat = Flattened(serialization.to_state_dict(tree), where, 10**7)
    return TensorFile(flat.tensors, flat.metadata, "orbax")


def _check_sizes(described: Any, folder: Path, where: str) -> None:
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    claimed = 0
    for leaf in jax.tree.leaves(described):
        shape = getattr(leaf, "shape", None)
        if shape is not None:
            claimed += math.prod(shape) * np.dtype(leaf.dtype).itemsize
    if claimed > max(64 * MEBIBYTE, LARGEST_EXPANSION * stored):
        raise damaged(where, f"its arrays claim {claimed} bytes, far more than its files have")
