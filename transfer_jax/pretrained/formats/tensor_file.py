"""What every reader returns, and the checks that all of them share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from transfer_jax.core.errors import UserError

HIGHEST_RANK = 32
DEEPEST = 64  # levels of nesting in a file's structure
MEBIBYTE = 2**20

EXTENDED = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
            "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz), "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
            "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz)}


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """The content of one file (or folder) of parameters.

    tensors: arrays by the flat names that the file gives them. Levels of nested dictionaries are joined by '/'.
        Types stay as they are stored: bfloat16 is `ml_dtypes.bfloat16`, float16 stays float16. May be read-only views.
    metadata: plain values found beside the tensors: epoch, best_prec1, safetensors metadata, Keras config, ...
    format: 'safetensors', 'torch zip', 'torch legacy', 'torch script', 'pickle', 'npz', 'keras h5', 'keras 3', 'hdf5',
        'tfjs', 'onnx', 'orbax' or 'msgpack'.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]
    format: str


def damaged(where: str, what: str) -> UserError:
    """The error for a file whose content contradicts itself or its format."""
    return UserError(f"{where}: {what}; the file is damaged or is not what it claims to be, fetch another copy")


def refused(where: str, what: str, instead: str) -> UserError:
    """The error for a sound file with something in it that is not read."""
    return UserError(f"{where}: {what}; {instead}")


def count(shape: Sequence[int], where: str, name: str) -> int:
    """The number of elements of `shape`, if an array can have that shape at all."""
    if len(shape) > HIGHEST_RANK or not all(type(size) is int and size >= 0 for size in shape):
        raise damaged(where, f"{shown(name)} has an impossible shape")
    if math.prod(max(1, size) for size in shape) >= 2**59:
        raise damaged(where, f"{shown(name)} claims an absurd shape")
    return math.prod(shape)


def array_of(data: bytes | bytearray | memoryview, dtype: np.dtype, shape: Sequence[int], where: str,
             name: str) -> np.ndarray:
    """The array that exactly fills `data`; a view of it wherever the bytes are what NumPy expects."""
    expected = count(shape, where, name) * dtype.itemsize
    if len(data) != expected:
        raise damaged(where, f"{shown(name)} needs {expected} bytes, but {len(data)} are there")
    return elements_of(data, dtype).reshape(tuple(shape))


def elements_of(data: bytes | bytearray | memoryview, dtype: np.dtype, order: str = "<") -> np.ndarray:
    """All elements in `data` as a flat array in the byte order of this machine."""
    if dtype == np.bool_:
        return np.frombuffer(data, np.uint8) != 0
    if dtype.name in EXTENDED:
        bits = np.frombuffer(data, np.dtype(f"{order}u{dtype.itemsize}"))
        return bits.astype(bits.dtype.newbyteorder("="), copy=False).view(dtype)
    stored = np.frombuffer(data, dtype.newbyteorder(order))
    return stored.astype(dtype.newbyteorder("="), copy=False)


def is_numeric(dtype: np.dtype) -> bool:
    """Whether arrays of this type are tensors: numbers or truth values."""
    return dtype.kind in "biufc" or dtype.name in EXTENDED


def shown(name: object) -> str:
    """A name out of a file, fit for an error message: short, and without control characters."""
    text = repr(str(name))
    return text if len(text) <= 80 else text[:76] + "...'"


def add_once(into: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Adds an entry that must not be there yet."""
    if name in into:
        raise damaged(where, f"{shown(name)} occurs twice")
    into[name] = value


def plain(value: Any) -> bool:
    """Whether `value` is one number, string, truth value or None."""
    return value is None or isinstance(value, (str, int, float, bool))
