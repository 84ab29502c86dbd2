"""ONNX: the initialisers of the main graph, read from the wire format without the onnx package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.protobuf import BYTES, FIXED32, FIXED64, fields, signed, varints
from transfer_jax.pretrained.formats.safetensors_files import beside
from transfer_jax.pretrained.formats.tensor_file import (
    EXTENDED,
    TensorFile,
    add_once,
    array_of,
    count,
    damaged,
    refused,
    shown,
)

# Numbers of fields and types are those of onnx.proto (ModelProto, GraphProto, TensorProto).
MODEL_VERSION, MODEL_PRODUCER, MODEL_PRODUCER_VERSION, MODEL_GRAPH = 1, 2, 3, 7
GRAPH_NAME, GRAPH_INITIALIZER, GRAPH_SPARSE = 2, 5, 15
(DIMS, DATA_TYPE, SEGMENT, FLOATS, INT32S, STRINGS, INT64S, NAME, RAW, DOUBLES, UINT64S, _, EXTERNAL,
 LOCATION) = range(1, 15)
TYPES = {1: np.dtype("f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 4: np.dtype("u2"), 5: np.dtype("i2"),
         6: np.dtype("i4"), 7: np.dtype("i8"), 9: np.dtype("?"), 10: np.dtype("f2"), 11: np.dtype("f8"),
         12: np.dtype("u4"), 13: np.dtype("u8"), 14: np.dtype("c8"), 15: np.dtype("c16"), 16: EXTENDED["bfloat16"],
         17: EXTENDED["float8_e4m3fn"], 18: EXTENDED["float8_e4m3fnuz"], 19: EXTENDED["float8_e5m2"],
         20: EXTENDED["float8_e5m2fnuz"]}


@dataclasses.dataclass
class _Tensor:
    """The fields of one TensorProto."""

    name: str = ""
    kind: int = 0
    shape: list[int] = dataclasses.field(default_factory=list)
    raw: memoryview | None = None
    words: bytearray = dataclasses.field(default_factory=bytearray)  # float_data or double_data
    numbers: list[int] = dataclasses.field(default_factory=list)  # int32_data, int64_data or uint64_data
    external: dict[str, str] = dataclasses.field(default_factory=dict)
    elsewhere: bool = False


def read_onnx(path: Path, where: str) -> TensorFile:
    """All initialisers by name; data outside of the file are read from the same folder only."""
    try:
        return _read_model(memoryview(path.read_bytes()), path.parent, where)
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(where, f"it is no ONNX model ({shown(error)})") from error


def _read_model(data: memoryview, folder: Path, where: str) -> TensorFile:
    metadata: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    graphs = 0
    for number, wire, value in fields(data):
        if number == MODEL_VERSION and isinstance(value, int):
            metadata["ir_version"] = value
        elif number in (MODEL_PRODUCER, MODEL_PRODUCER_VERSION) and wire == BYTES:
            metadata["producer" if number == MODEL_PRODUCER else "producer_version"] = str(value, "utf-8")
        elif number == MODEL_GRAPH and wire == BYTES:
            graphs += 1
            _read_graph(value, folder, tensors, metadata, where)
    if graphs != 1 or "ir_version" not in metadata:
        raise ValueError("a model has one graph and a version")
    return TensorFile(tensors, metadata, "onnx")


def _read_graph(graph: memoryview, folder: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any],
                where: str) -> None:
    for number, wire, value in fields(graph):
        if number == GRAPH_NAME and wire == BYTES:
            metadata["graph"] = str(value, "utf-8")
        elif number == GRAPH_SPARSE:
            raise refused(where, "it has sparse initialisers", "export the model with dense ones")
        elif number == GRAPH_INITIALIZER and wire == BYTES:
            tensor = _parsed(value)
            add_once(tensors, tensor.name, _array(tensor, folder, where), where)


def _parsed(message: memoryview) -> _Tensor:
    tensor = _Tensor()
    for number, wire, value in fields(message):
        if number == DIMS:
            tensor.shape += [signed(size) for size in varints(wire, value)]
        elif number == DATA_TYPE:
            tensor.kind = int(value)
        elif number == NAME:
            tensor.name = str(value, "utf-8")
        elif number == RAW and wire == BYTES:
            tensor.raw = value
        elif number in (FLOATS, DOUBLES) and wire in (BYTES, FIXED32, FIXED64):
            tensor.words += value
        elif number in (INT32S, INT64S, UINT64S):
            tensor.numbers += varints(wire, value)
        elif number == EXTERNAL and wire == BYTES:
            entry = {field: str(text, "utf-8") for field, _, text in fields(value)}
            tensor.external[entry.get(1, "")] = entry.get(2, "")
        elif number == LOCATION:
            tensor.elsewhere = value != 0
        elif number in (SEGMENT, STRINGS):
            raise ValueError("a tensor is cut into segments or holds text")
    return tensor


def _array(tensor: _Tensor, folder: Path, where: str) -> np.ndarray:
    if tensor.kind not in TYPES:
        raise refused(where, f"{shown(tensor.name)} has the ONNX type {tensor.kind}, which is not read",
                      "export the model in float32")
    dtype = TYPES[tensor.kind]
    if tensor.elsewhere:
        return _external(tensor, dtype, folder, where)
    if tensor.raw is not None:
        return array_of(tensor.raw, dtype, tensor.shape, where, tensor.name)
    if tensor.numbers:
        return _from_numbers(tensor, dtype, where)
    return array_of(bytes(tensor.words), dtype, tensor.shape, where, tensor.name)


def _from_numbers(tensor: _Tensor, dtype: np.dtype, where: str) -> np.ndarray:
    """Integers, and the bits of half-width floats, which ONNX keeps one by one."""
    bits = dtype.itemsize * 8
    if bits > 64 or dtype in (np.float32, np.float64, np.complex64):
        raise ValueError("floating-point values are stored as integers")
    if len(tensor.numbers) != count(tensor.shape, where, tensor.name):
        raise damaged(where, f"{shown(tensor.name)} has {len(tensor.numbers)} values, which does not fit its shape")
    unsigned = np.array([number & (2**bits - 1) for number in tensor.numbers], f"u{dtype.itemsize}")
    return array_of(unsigned.tobytes(), dtype, tensor.shape, where, tensor.name)


def _external(tensor: _Tensor, dtype: np.dtype, folder: Path, where: str) -> np.ndarray:
    path = beside(folder, tensor.external.get("location"), where)
    nbytes = count(tensor.shape, where, tensor.name) * dtype.itemsize
    start, length = (int(tensor.external.get(key, default)) for key, default in (("offset", 0), ("length", nbytes)))
    if length != nbytes or start < 0 or start + length > path.stat().st_size:
        raise damaged(where, f"{shown(tensor.name)} reaches beyond {path.name} or does not fit its shape")
    try:
        with path.open("rb") as file:
            file.seek(start)
            return array_of(file.read(length), dtype, tensor.shape, where, tensor.name)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
