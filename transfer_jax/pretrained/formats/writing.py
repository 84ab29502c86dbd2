"""Writes tensors by the suffix of the path; the file appears complete or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.npz_files import write_npz
from transfer_jax.pretrained.formats.tensor_file import is_numeric
from transfer_jax.pretrained.formats.torch_writing import write_torch_zip


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None,
                  overwrite: bool = False) -> None:
    """Writes `tensors` in the format of the suffix: `.safetensors`, `.pth`, `.pt`, `.bin` (torch) or `.npz`.

    Args:
        metadata: safetensors: strings by name (other values become their text). torch: plain values; the tensors then
            lie below 'state_dict'. `.npz` has no place for metadata.
        overwrite: whether an existing file is replaced.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: files with the suffix {path.suffix!r} cannot be written; use one of "
                        f"{', '.join(WRITERS)}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name or remove it first")
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if not is_numeric(array.dtype):
            raise UserError(f"{name!r} holds no numbers but {array.dtype}; it cannot be written to {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            WRITERS[path.suffix](file, arrays, dict(metadata or {}))
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException as error:
        Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    texts = {key: str(value) for key, value in metadata.items()}
    file.write(save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, texts or None))


WRITERS = {".safetensors": _write_safetensors, ".pth": write_torch_zip, ".pt": write_torch_zip,
           ".bin": write_torch_zip, ".npz": write_npz}
