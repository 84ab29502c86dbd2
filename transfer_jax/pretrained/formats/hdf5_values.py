"""Values in an HDF5 file: types, shapes, attributes, and datasets in one piece or in compressed chunks."""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import numpy as np

from transfer_jax.pretrained.formats.hdf5_structure import (
    ATTRIBUTE,
    ATTRIBUTE_INFO,
    DATASPACE,
    DATATYPE,
    FILTERS,
    LAYOUT,
    NOWHERE,
    SHARED_TYPE,
    Message,
    Structure,
    Unsupported,
)
from transfer_jax.pretrained.formats.tensor_file import EXTENDED, HIGHEST_RANK, elements_of

FIXED, FLOAT, STRING, OPAQUE, ENUM, VARYING = 0, 1, 3, 5, 8, 9  # classes of types
COMPACT, CONTIGUOUS, CHUNKED = 0, 1, 2  # classes of layouts
DEFLATE, SHUFFLE, CHECKSUM = 1, 2, 3  # filters of chunks
NULL_SPACE = 2
EXPONENTS = {(2, 5): "float16", (2, 8): "bfloat16", (4, 8): "float32", (8, 11): "float64"}  # size, bits of exponent


@dataclasses.dataclass(frozen=True)
class Type:
    """One HDF5 type: its size in the file and, for numbers, NumPy's type and the byte order."""

    kind: int
    size: int
    dtype: np.dtype | None = None
    order: str = "<"


def datatype(data: memoryview) -> Type:
    """The type that a datatype message describes."""
    kind, size, order = data[0] & 15, int.from_bytes(data[4:8], "little"), ">" if data[1] & 1 else "<"
    if len(data) < 8 or not size:
        raise ValueError("a type has no size")
    if kind == FIXED and size in (1, 2, 4, 8):
        return Type(kind, size, np.dtype(f"{'i' if data[1] & 8 else 'u'}{size}"), order)
    if kind == FLOAT and (size, data[13]) in EXPONENTS:
        name = EXPONENTS[size, data[13]]
        return Type(kind, size, EXTENDED.get(name) or np.dtype(name), order)
    if kind == ENUM and size == 1:
        return Type(kind, size, np.dtype(bool))  # how h5py writes truth values
    if kind == VARYING and data[1] & 15 != 1:
        raise Unsupported("lists of varying length")
    return Type(kind, size)


def dataspace(data: memoryview) -> tuple[int, ...] | None:
    """The shape that a dataspace message describes; None for a space without elements."""
    version, rank = data[0], data[1]
    if version not in (1, 2) or rank > HIGHEST_RANK:
        raise ValueError("a shape has an unknown form")
    if version == 2 and data[3] == NULL_SPACE:
        return None
    start = 8 if version == 1 else 4
    if len(data) < start + 8 * rank:
        raise ValueError("a shape is cut off")
    return tuple(int.from_bytes(data[at:at + 8], "little") for at in range(start, start + 8 * rank, 8))


def attributes(file: Structure, address: int) -> dict[str, Any]:
    """Strings, numbers and lists of them by name; values of other types are left out."""
    found = {}
    for message in file.messages(address):
        if message.kind == ATTRIBUTE_INFO:
            start = 2 + (2 if message.data[1] & 1 else 0)
            if int.from_bytes(message.data[start:start + 8], "little") != NOWHERE:
                raise Unsupported("densely stored attributes")
        elif message.kind == ATTRIBUTE:
            name, value = _attribute(file, message.data)
            if name in found:
                raise ValueError(f"the attribute {name[:60]!r} occurs twice")
            found[name] = value
    return found


def _attribute(file: Structure, data: memoryview) -> tuple[str, Any]:
    version = data[0]
    if version not in (1, 2, 3):
        raise ValueError("an attribute has an unknown version")
    if version > 1 and data[1] & SHARED_TYPE:
        raise Unsupported("types that several objects share")
    pieces, position = [], 9 if version == 3 else 8
    for at in (2, 4, 6):
        size = int.from_bytes(data[at:at + 2], "little")
        pieces.append(data[position:position + size])
        position += -(-size // 8) * 8 if version == 1 else size
    name = bytes(pieces[0]).partition(b"\0")[0].decode()
    shape = dataspace(pieces[2])
    if shape is None:
        return name, None
    kind = datatype(pieces[1])
    elements = math.prod(shape)
    if elements * kind.size > len(data) - position:
        raise ValueError(f"the attribute {name[:60]!r} is cut off")
    values = _plain(file, kind, data[position:position + elements * kind.size], elements)
    return name, values if shape else values[0]


def _plain(file: Structure, kind: Type, data: memoryview, elements: int) -> list[Any]:
    if kind.kind in (STRING, VARYING):
        texts = (bytes(data[at:at + kind.size]) for at in range(0, elements * kind.size, kind.size))
        if kind.kind == VARYING:
            texts = (_varying(file, text) for text in texts)
        return [text.partition(b"\0")[0].decode() for text in texts]
    if kind.dtype is None:
        return [None] * elements
    return elements_of(data, kind.dtype, kind.order).tolist()


def _varying(file: Structure, reference: bytes) -> bytes:
    if len(reference) != 16:
        raise ValueError("a reference to a string is cut off")
    file.step()
    length, address, index = (int.from_bytes(reference[a:b], "little") for a, b in ((0, 4), (4, 12), (12, 16)))
    if not length:
        return b""
    text = file.heap_object(address, index)
    if len(text) < length:
        raise ValueError("a string is cut off")
    return bytes(text[:length])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Type, shape and place of the values of one dataset."""

    file: Structure
    kind: Type
    shape: tuple[int, ...]
    layout: memoryview
    filters: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.kind.size

    def read(self) -> np.ndarray:
        """The values as numbers; opaque ones as raw bytes (`V`)."""
        if self.kind.dtype is None and self.kind.kind != OPAQUE:
            raise Unsupported("values that are no numbers")
        data = self._bytes()
        if self.kind.dtype is None:
            return np.frombuffer(data, np.dtype(f"V{self.kind.size}")).reshape(self.shape)
        return elements_of(data, self.kind.dtype, self.kind.order).reshape(self.shape)

    def _bytes(self) -> memoryview:
        layout = self.layout
        version, way = layout[0], layout[1]
        if version not in (3, 4):
            raise Unsupported(f"data layouts of version {version}")
        if way == COMPACT:
            size = int.from_bytes(layout[2:4], "little")
            data = layout[4:4 + size]
        elif way == CONTIGUOUS:
            address = int.from_bytes(layout[2:10], "little")
            if address == NOWHERE and self.nbytes:
                raise ValueError("the values of a dataset were never written")
            data = self.file.part(address, self.nbytes) if self.nbytes else memoryview(b"")
        elif way == CHUNKED and version == 3:
            data = self._from_chunks()
        else:
            raise Unsupported("chunks with a newer index")
        if len(data) < self.nbytes:
            raise ValueError("a dataset is cut off")
        return data[:self.nbytes]

    def _from_chunks(self) -> memoryview:
        rank, size = self.layout[2] - 1, self.kind.size
        numbers = [int.from_bytes(self.layout[at:at + 4], "little") for at in range(11, 11 + 4 * (rank + 1), 4)]
        chunk = tuple(numbers[:-1])
        if rank != len(self.shape) or numbers[-1] != size or not all(chunk):
            raise ValueError("chunks do not fit their dataset")
        if math.prod(chunk) * size > max(2 * self.nbytes, 2**20):
            raise ValueError("chunks are larger than their dataset")
        values = np.zeros(self.shape, f"V{size}")
        left = math.prod(-(-total // step) for total, step in zip(self.shape, chunk, strict=True))
        tree = int.from_bytes(self.layout[3:11], "little")
        for leaf in self.file.tree_leaves(tree, kind=1, key_size=8 + 8 * (rank + 1)) if tree != NOWHERE else ():
            left -= 1
            start = [int.from_bytes(leaf.key[8 + 8 * axis:16 + 8 * axis], "little") for axis in range(rank)]
            if left < 0 or any(at >= total for at, total in zip(start, self.shape, strict=True)):
                raise ValueError("a chunk lies outside of its dataset")
            stored = self.file.part(leaf.child, int.from_bytes(leaf.key[:4], "little"))
            skipped = int.from_bytes(leaf.key[4:8], "little")
            block = np.frombuffer(self._unfiltered(stored, skipped, math.prod(chunk) * size), f"V{size}").reshape(chunk)
            room = tuple(slice(at, at + step) for at, step in zip(start, chunk, strict=True))
            values[room] = block[tuple(slice(0, length) for length in values[room].shape)]
        if left:
            raise ValueError("chunks of a dataset are missing")
        return memoryview(values.tobytes())

    def _unfiltered(self, data: memoryview, skipped: int, expected: int) -> bytes:
        undone: bytes | memoryview = data
        for index, number in reversed(list(enumerate(self.filters))):
            if skipped >> index & 1:
                continue
            if number == DEFLATE:
                undone = zlib.decompressobj().decompress(undone, expected + 4)
            elif number == CHECKSUM:
                undone = undone[:-4]
            elif number == SHUFFLE:
                planes = np.frombuffer(undone, np.uint8).reshape(self.kind.size, -1)
                undone = planes.T.tobytes()
        if len(undone) != expected:
            raise ValueError("a chunk does not have the size of its values")
        return bytes(undone)


def dataset(file: Structure, address: int) -> Dataset:
    """The dataset whose header is at `address`."""
    found: dict[int, Message] = {message.kind: message for message in file.messages(address)}
    missing = [kind for kind in (DATASPACE, DATATYPE, LAYOUT) if kind not in found]
    if missing:
        raise ValueError("an object is neither a group nor a dataset")
    shape = dataspace(found[DATASPACE].data)
    if shape is None:
        raise Unsupported("datasets without values")
    filters = _filters(found[FILTERS].data) if FILTERS in found else ()
    return Dataset(file, datatype(found[DATATYPE].data), shape, found[LAYOUT].data, filters)


def _filters(data: memoryview) -> tuple[int, ...]:
    version, position, numbers = data[0], 8 if data[0] == 1 else 2, []
    for _ in range(data[1]):
        number = int.from_bytes(data[position:position + 2], "little")
        named = version == 1 or number >= 256
        length = int.from_bytes(data[position + 2:position + 4], "little") if named else 0
        position += 4 if named else 2
        settings = int.from_bytes(data[position + 2:position + 4], "little")
        padded = -(-length // 8) * 8 if version == 1 else length
        position += 4 + padded + 4 * (settings + (settings % 2 if version == 1 else 0))
        if number not in (DEFLATE, SHUFFLE, CHECKSUM):
            raise Unsupported(f"the filter {number}")
        numbers.append(number)
    return tuple(numbers)
