"""NumPy archives: the `.npz` of BiT, vit_jax and big_vision with flat '/' names."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.archives import Archive
from transfer_jax.pretrained.formats.tensor_file import (
    EXTENDED,
    TensorFile,
    add_once,
    count,
    damaged,
    elements_of,
    is_numeric,
    refused,
    shown,
)

LONGEST_HEADER = 10_000  # bytes
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path, where: str) -> TensorFile:
    """All arrays of the archive; strings become metadata, and arrays of objects (pickles) are refused."""
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, Any] = {}
    with Archive(path, where) as archive:
        for member in archive.names:
            name = member.removesuffix(".npy")
            array = _read_npy(archive.read(member), where, name)
            if array.dtype.kind in "US":
                metadata[name] = array.astype(str).tolist()
            else:
                add_once(tensors, name, array, where)
    return TensorFile(tensors, metadata, "npz")


def _read_npy(data: bytes, where: str, name: str) -> np.ndarray:
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        shape, fortran, dtype = HEADERS[version](stream, max_header_size=LONGEST_HEADER)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise damaged(where, f"{shown(name)} is no NumPy array ({shown(error)})") from error
    if dtype.hasobject:
        raise refused(where, f"{shown(name)} is an array of Python objects, that is, a pickle",
                      "it was not read; save it as plain arrays")
    if dtype == np.dtype("V2"):  # what NumPy writes for bfloat16
        dtype = EXTENDED["bfloat16"]
    if not is_numeric(dtype) and dtype.kind not in "US" or not dtype.itemsize:
        raise refused(where, f"{shown(name)} has the type {shown(dtype)}, which holds no numbers", "leave it out")
    rest = memoryview(data)[stream.tell():]
    if len(rest) != count(shape, where, name) * dtype.itemsize:
        raise damaged(where, f"{shown(name)} has {len(rest)} bytes, which does not fit its shape")
    order = ">" if dtype.byteorder == ">" else "<"
    flat = elements_of(rest, dtype.newbyteorder("="), order)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def write_npz(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """An uncompressed archive with one member per tensor; bfloat16 as NumPy writes it, as two raw bytes."""
    if metadata:
        raise UserError("an .npz file has no place for metadata; write .safetensors, or leave it out")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in tensors.items():
            member = io.BytesIO()
            npy.write_array(member, np.asarray(tensor), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
