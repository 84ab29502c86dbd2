"""Files of `torch.save`: zip archives (also TorchScript's) and the older stream of pickles, read without torch."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.pretrained.formats.archives import Archive
from transfer_jax.pretrained.formats.nested import Flattened
from transfer_jax.pretrained.formats.pickle_data import Name, read_pickle
from transfer_jax.pretrained.formats.pickled_objects import (
    PLAIN_PICKLE,
    SCRIPT,
    STORAGES,
    TORCH_PICKLE,
    WIDTHS,
    Storage,
    StoragePart,
)
from transfer_jax.pretrained.formats.tensor_file import TensorFile, damaged, refused, shown

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of every legacy file
LEGACY_BYTES = LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_VERSION = 1001
NODES_PER_BYTE, SPARE_NODES = 4, 10_000


class Storages:
    """All storages that one pickle refers to, by key."""

    def __init__(self, where: str, order: str = "<") -> None:
        self.where, self.order = where, order
        self.found: dict[str, Storage] = {}

    def refer(self, reference: Any) -> Storage | StoragePart:
        """The storage for a persistent id ('storage', type, key, device, elements[, part]); the device is ignored."""
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise ValueError("it refers to something that is no storage")
        _, kind, key, _, elements, *part = reference
        if not isinstance(kind, Name) or type(elements) is not int or elements < 0 or not isinstance(key, (str, int)):
            raise ValueError("a storage is described wrongly")
        dtype = WIDTHS[STORAGES[kind.full.rpartition(".")[2]]]
        root = self.found.setdefault(str(key), Storage(str(key), dtype, elements, self.order))
        if (root.dtype, root.elements) != (dtype, elements):
            raise ValueError("a storage is described in two ways")
        if part and part[0] is not None:
            _, start, length = part[0]
            return StoragePart(root, int(start), int(length))
        return root

    def fill(self, storage: Storage, data: bytes | memoryview) -> None:
        """Gives a storage its bytes, which must be as many as its tensors were told."""
        if len(data) != storage.elements * storage.dtype.itemsize:
            raise damaged(self.where, f"the storage {shown(storage.key)} has {len(data)} bytes instead of "
                                      f"{storage.elements * storage.dtype.itemsize}")
        storage.data = data


def read_torch_zip(path: Path, where: str) -> TensorFile:
    """A zip file of `torch.save`, or the modules' tensors of a TorchScript archive."""
    with Archive(path, where) as archive:
        pickles = [name for name in archive.names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise damaged(where, f"a torch archive has one data.pkl, this one {len(pickles)}")
        folder = pickles[0].removesuffix("data.pkl")
        script = f"{folder}constants.pkl" in archive.names
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.names else b"little"
        if order not in (b"little", b"big"):
            raise damaged(where, "its byte order is neither little nor big")
        storages = Storages(where, "<" if order == b"little" else ">")
        data = archive.read(pickles[0])
        tree = read_pickle(io.BytesIO(data), where, TORCH_PICKLE | SCRIPT if script else TORCH_PICKLE, storages.refer,
                           script)
        for key, storage in storages.found.items():
            storages.fill(storage, archive.read(f"{folder}data/{key}"))
    return _file(tree, where, len(data), "torch script" if script else "torch zip")


def read_torch_stream(path: Path, where: str) -> TensorFile:
    """A legacy file: pickles of magic number, version, system, content and keys of storages; then the storages."""
    data = path.read_bytes()
    stream = io.BytesIO(data)
    if read_pickle(stream, where, {}) != LEGACY_MAGIC:
        raise damaged(where, "the magic number of torch is wrong")
    if read_pickle(stream, where, {}) != LEGACY_VERSION:
        raise refused(where, "it has an unknown version of torch's legacy format", "save it anew with a current torch")
    read_pickle(stream, where, {})  # how wide the writer's integers were
    storages = Storages(where)
    tree = read_pickle(stream, where, TORCH_PICKLE, storages.refer)
    pickled = stream.tell()
    _fill_in_order(read_pickle(stream, where, {}), memoryview(data), stream.tell(), storages)
    return _file(tree, where, pickled, "torch legacy")


def _fill_in_order(keys: Any, data: memoryview, position: int, storages: Storages) -> None:
    where = storages.where
    named = isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys)
    if not named or sorted(map(str, keys)) != sorted(storages.found):
        raise damaged(where, "its list of storages does not fit its tensors")
    for key in keys:
        storage = storages.found[str(key)]
        if position + 8 > len(data):
            raise damaged(where, "it ends before its last storage")
        elements, = struct.unpack_from("<q", data, position)
        position += 8
        if elements != storage.elements:
            raise damaged(where, f"the storage {shown(key)} has another size than its tensors were told")
        end = position + elements * storage.dtype.itemsize
        storages.fill(storage, data[position:end])
        position = end
    if position != len(data):
        raise damaged(where, f"{len(data) - position} bytes are left over behind its last storage")


def read_plain_pickle(path: Path, where: str) -> TensorFile:
    """A pickle of NumPy arrays in dictionaries, as older converters wrote them."""
    data = path.read_bytes()
    return _file(read_pickle(io.BytesIO(data), where, PLAIN_PICKLE), where, len(data), "pickle")


def _file(tree: Any, where: str, pickled: int, kind: str) -> TensorFile:
    flat = Flattened(tree, where, SPARE_NODES + NODES_PER_BYTE * pickled)
    return TensorFile({name: np.asarray(tensor) for name, tensor in flat.tensors.items()}, flat.metadata, kind)
