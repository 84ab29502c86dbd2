"""TensorFlow.js: `model.json` with a manifest of weights, and binary shards beside it, plain or quantised."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.pretrained.formats.json_files import parse_json
from transfer_jax.pretrained.formats.safetensors_files import beside
from transfer_jax.pretrained.formats.tensor_file import (
    TensorFile,
    add_once,
    count,
    damaged,
    elements_of,
    refused,
    shown,
)

TYPES = {"float32": np.dtype("f4"), "int32": np.dtype("i4"), "bool": np.dtype("?"), "complex64": np.dtype("c8"),
         "uint8": np.dtype("u1"), "uint16": np.dtype("u2"), "float16": np.dtype("f2")}
QUANTISED = ("uint8", "uint16", "float16")


def read_tfjs(path: Path, where: str) -> TensorFile:
    """The layers of `model.json`; the bytes of a group's shards follow each other, and each tensor those before it."""
    content = parse_json(path.read_bytes(), where)
    manifest = content.get("weightsManifest")
    if not isinstance(manifest, list) or not all(isinstance(group, dict) for group in manifest):
        raise damaged(where, "its weightsManifest is not a list of groups")
    tensors: dict[str, np.ndarray] = {}
    for group in manifest:
        paths, entries = group.get("paths"), group.get("weights")
        if not isinstance(paths, list) or not isinstance(entries, list):
            raise damaged(where, "a group of its weightsManifest lacks paths or weights")
        shards = [beside(path.parent, name, where).read_bytes() for name in paths]
        _read_group(memoryview(b"".join(shards)), entries, tensors, where)
    metadata = {key: content[key] for key in ("format", "generatedBy", "convertedBy", "modelTopology")
                if content.get(key) is not None}
    return TensorFile(tensors, metadata, "tfjs")


def _read_group(data: memoryview, entries: list[Any], tensors: dict[str, np.ndarray], where: str) -> None:
    position = 0
    for entry in entries:
        name, shape, dtype, quantisation = _described(entry, where)
        end = position + count(shape, where, name) * dtype.itemsize
        if end > len(data):
            raise damaged(where, f"{shown(name)} reaches beyond its shards; one of them may be cut off")
        stored = elements_of(data[position:end], dtype).reshape(shape)
        add_once(tensors, name, _dequantised(stored, quantisation, where, name) if quantisation else stored, where)
        position = end
    if position != len(data):
        raise damaged(where, f"{len(data) - position} bytes of its shards belong to no tensor")


def _described(entry: Any, where: str) -> tuple[str, tuple[int, ...], np.dtype, dict[str, Any] | None]:
    wanted = {"name": str, "shape": list}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in wanted.items()):
        raise damaged(where, "an entry of its weightsManifest lacks name or shape")
    quantisation = entry.get("quantization")
    if quantisation is not None and (not isinstance(quantisation, dict) or quantisation.get("dtype") not in QUANTISED):
        raise damaged(where, f"{shown(entry['name'])} is quantised in an unknown way")
    kind = quantisation["dtype"] if quantisation else entry.get("dtype")
    if kind not in TYPES or entry.get("dtype") not in TYPES:
        raise refused(where, f"{shown(entry['name'])} has the type {shown(entry.get('dtype'))}, which is no number",
                      "leave it out")
    return entry["name"], tuple(entry["shape"]), TYPES[kind], quantisation


def _dequantised(stored: np.ndarray, quantisation: dict[str, Any], where: str, name: str) -> np.ndarray:
    """`stored * scale + min` in float32, as TensorFlow.js computes it; float16 is only widened."""
    if stored.dtype == np.float16:
        return stored.astype(np.float32)
    scale, least = quantisation.get("scale"), quantisation.get("min")
    if not all(type(value) in (int, float) and abs(value) < math.inf for value in (scale, least)):
        raise damaged(where, f"{shown(name)} is quantised without a scale and a minimum")
    with np.errstate(over="ignore"):
        values = stored.astype(np.float32) * np.float32(scale) + np.float32(least)
    return np.rint(values).astype(np.int32) if quantisation.get("original_dtype") == "int32" else values
