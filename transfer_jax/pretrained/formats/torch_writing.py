"""Writes the zip format of `torch.save` without torch; `torch.load(weights_only=True)` accepts it."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.pickled_objects import STORAGES, WIDTHS

EPOCH = (1980, 1, 1, 0, 0, 0)  # one date for all files: the same tensors give the same bytes
FOLDER = "archive"
STORAGE_OF = {WIDTHS[width]: name for name, width in STORAGES.items() if name != "UntypedStorage"}


def write_torch_zip(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """A dictionary of tensors; with `metadata` it lies below 'state_dict', beside the plain values."""
    unfit = [name for name, tensor in tensors.items() if np.asarray(tensor).dtype not in STORAGE_OF]
    if unfit:
        raise UserError(f"torch has no storage for {unfit[0]!r} of type {tensors[unfit[0]].dtype}; "
                        f"convert it or write .safetensors")
    pickle = _Pickle()
    pickle.content(tensors, metadata)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", bytes(pickle.data))
        _add(archive, "byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            tensor = np.asarray(tensor, order="C")
            _add(archive, f"data/{key}", tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}", EPOCH), data)


class _Pickle:
    """The few instructions of pickle protocol 2 that a state dictionary needs."""

    def __init__(self) -> None:
        self.data = bytearray(b"\x80\x02")

    def content(self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        if metadata:
            self.data += b"}("
            self.value("state_dict")
            self.state_dict(tensors)
            for key, value in metadata.items():
                self.value(key)
                self.value(value)
            self.data += b"u"
        else:
            self.state_dict(tensors)
        self.data += b"."

    def state_dict(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.data += b"ccollections\nOrderedDict\n)R("
        for key, (name, tensor) in enumerate(tensors.items()):
            self.value(name)
            self.tensor(key, np.asarray(tensor))
        self.data += b"u"

    def tensor(self, key: int, tensor: np.ndarray) -> None:
        steps = [int(np.prod(tensor.shape[axis + 1:], dtype=np.int64)) for axis in range(tensor.ndim)]
        self.data += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        self.value("storage")
        self.data += f"ctorch\n{STORAGE_OF[tensor.dtype]}\n".encode()
        for part in (str(key), "cpu", tensor.size):
            self.value(part)
        self.data += b"tQ"
        for part in (0, tensor.shape, tuple(steps), False):
            self.value(part)
        self.data += b"ccollections\nOrderedDict\n)RtR"

    def value(self, value: Any) -> None:
        """A plain value, or lists, tuples and dictionaries of them."""
        if value is None or isinstance(value, bool):
            self.data += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, str):
            text = value.encode()
            self.data += b"X" + struct.pack("<I", len(text)) + text
        elif isinstance(value, (int, np.integer)):
            number = int(value).to_bytes(int(value).bit_length() // 8 + 1, "little", signed=True)
            self.data += b"\x8a" + bytes([len(number)]) + number
        elif isinstance(value, (float, np.floating)):
            self.data += b"G" + struct.pack(">d", value)
        elif isinstance(value, (list, tuple)):
            self.data += b"](" if isinstance(value, list) else b"("
            for item in value:
                self.value(item)
            self.data += b"e" if isinstance(value, list) else b"t"
        elif isinstance(value, Mapping):
            self.data += b"}("
            for key, item in value.items():
                self.value(key)
                self.value(item)
            self.data += b"u"
        else:
            raise UserError(f"metadata of the type {type(value).__name__} cannot be written; give plain values")
