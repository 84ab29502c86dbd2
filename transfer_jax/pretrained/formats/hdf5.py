"""HDF5 files by path: groups, attributes and datasets, read without the HDF5 library: every size is checked first."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.hdf5_structure import MAGIC, USER_BLOCKS, Structure, Unsupported
from transfer_jax.pretrained.formats.hdf5_values import attributes, dataset
from transfer_jax.pretrained.formats.tensor_file import (
    DEEPEST,
    EXTENDED,
    MEBIBYTE,
    count,
    damaged,
    is_numeric,
    refused,
    shown,
)

LARGEST_EXPANSION = 200  # times the size of the file
FAULTS = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError, struct.error,
          zlib.error)


def is_hdf5(start: bytes) -> bool:
    """Whether a file that begins so is HDF5, possibly behind a block of other bytes."""
    return any(start[at:at + len(MAGIC)] == MAGIC for at in USER_BLOCKS)


class Hdf5:
    """An HDF5 file in memory."""

    def __init__(self, data: bytes, where: str) -> None:
        self.where = where
        self.budget = max(64 * MEBIBYTE, LARGEST_EXPANSION * len(data))
        try:
            self._file = Structure(data)
        except (*FAULTS, Unsupported) as error:
            raise self._fault(error) from error

    def _fault(self, error: BaseException) -> UserError:
        if isinstance(error, UserError):
            return error
        if isinstance(error, Unsupported):
            return refused(self.where, f"it uses {error}, a part of HDF5 that is not read",
                           "save it anew with the default settings of h5py")
        return damaged(self.where, f"its HDF5 structures contradict each other ({shown(error)})")

    def attributes(self, path: str = "/") -> dict[str, Any]:
        """Strings, numbers and lists of them beside the group or dataset at `path`."""
        try:
            return attributes(self._file, self._address(path))
        except (*FAULTS, Unsupported) as error:
            raise self._fault(error) from error

    def has(self, path: str) -> bool:
        """Whether there is a group or dataset of this path."""
        try:
            self._address(path)
            return True
        except KeyError:
            return False
        except (*FAULTS, Unsupported) as error:
            raise self._fault(error) from error

    def _address(self, path: str) -> int:
        address = self._file.root
        for part in path.strip("/").split("/") if path.strip("/") else ():
            address = self._file.links(address)[part]
        return address

    def read(self, path: str) -> np.ndarray:
        """The dataset at `path`; bfloat16 also where Keras marked it by the attribute `dtype`."""
        try:
            address = self._address(path)
            found = dataset(self._file, address)
            count(found.shape, self.where, path)
            self.budget -= found.nbytes
            if self.budget < 0:
                raise damaged(self.where, f"{shown(path)} claims far more values than the file has bytes for")
            values = found.read()
            marked = attributes(self._file, address).get("dtype")
        except KeyError as error:
            raise damaged(self.where, f"it lacks {shown(path)}") from error
        except (*FAULTS, Unsupported) as error:
            raise self._fault(error) from error
        if marked == "bfloat16" and values.dtype.itemsize == 2:
            values = values.view(EXTENDED["bfloat16"])
        if not is_numeric(values.dtype):
            raise refused(self.where, f"{shown(path)} holds no numbers", "leave it out")
        return values

    def datasets(self) -> Iterator[str]:
        """Paths of all datasets, without the leading '/'."""
        try:
            yield from self._below(self._file.root, "", 0)
        except (*FAULTS, Unsupported) as error:
            raise self._fault(error) from error

    def _below(self, address: int, path: str, depth: int) -> Iterator[str]:
        self._file.step()
        if depth > DEEPEST:  # a group may contain itself
            raise ValueError("groups are nested without an end")
        if not self._file.is_group(address):
            yield path
            return
        for name, member in self._file.links(address).items():
            yield from self._below(member, f"{path}/{name}" if path else name, depth + 1)
