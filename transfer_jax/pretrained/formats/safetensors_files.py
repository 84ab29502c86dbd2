"""safetensors: one file, or shards with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from transfer_jax.pretrained.formats.json_files import parse_json
from transfer_jax.pretrained.formats.tensor_file import EXTENDED, TensorFile, array_of, damaged, refused, shown

LARGEST_HEADER = 100_000_000  # bytes, as in the format's definition
TYPES = {"F64": np.dtype("f8"), "F32": np.dtype("f4"), "F16": np.dtype("f2"), "I64": np.dtype("i8"),
         "I32": np.dtype("i4"), "I16": np.dtype("i2"), "I8": np.dtype("i1"), "U64": np.dtype("u8"),
         "U32": np.dtype("u4"), "U16": np.dtype("u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
         "C64": np.dtype("c8"), "BF16": EXTENDED["bfloat16"], "F8_E4M3": EXTENDED["float8_e4m3fn"],
         "F8_E5M2": EXTENDED["float8_e5m2"]}


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is one: the length of the header, then the header, which is JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER


def read_safetensors(path: Path, where: str) -> TensorFile:
    """One file. Its metadata are the strings below `__metadata__`."""
    data = path.read_bytes()
    header = _header(data, where)
    try:
        entries = deserialize(data)
    except (SafetensorError, ValueError) as error:
        raise damaged(where, f"safetensors refuses it ({shown(error)})") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in TYPES:
            raise refused(where, f"{shown(name)} has the type {entry['dtype']}, which is not read", "convert it first")
        tensors[name] = array_of(entry["data"], TYPES[entry["dtype"]], entry["shape"], where, name)
    return TensorFile({name: tensors[name] for name in header if name in tensors}, header.get("__metadata__", {}),
                      "safetensors")


def _header(data: bytes, where: str) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise damaged(where, f"its header claims {length} bytes, more than there are")
    return parse_json(data[8:8 + length], where)


def read_shards(index: Path, where: str, read: Any) -> TensorFile:
    """All shards of an index (`weight_map`: name -> file beside it), each name found exactly where the index says.

    Args:
        read: reads one shard, `(path, where) -> TensorFile`.
    """
    content = parse_json(index.read_bytes(), where)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise damaged(where, "its weight_map is not a table of file names")
    tensors: dict[str, np.ndarray] = {}
    kind = "safetensors"
    for shard in sorted(set(places.values())):
        path = beside(index.parent, shard, where)
        file = read(path, str(path))
        kind = file.format
        promised = {name for name, place in places.items() if place == shard}
        for name in sorted(promised ^ set(file.tensors)):
            fault = "lacks it" if name in promised else "holds it, but the index does not name it there"
            raise damaged(where, f"{shown(name)}: the shard {shard} {fault}")
        tensors |= file.tensors
    metadata = content.get("metadata")
    return TensorFile({name: tensors[name] for name in places}, metadata if isinstance(metadata, dict) else {}, kind)


def beside(folder: Path, name: Any, where: str) -> Path:
    """The file called `name` in `folder`: names that lead elsewhere are an error, and so is a missing file."""
    if not isinstance(name, str) or name in ("", ".", "..") or any(sign in name for sign in "/\\\0:"):
        raise damaged(where, f"{shown(name)} is not the name of a file beside it")
    path = folder / name
    if not path.is_file():
        raise refused(where, f"the file {name!r} that belongs to it is missing", f"put it into {folder}")
    return path


def index_of(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None if it holds no weight map."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and "weight_map" in content else None
