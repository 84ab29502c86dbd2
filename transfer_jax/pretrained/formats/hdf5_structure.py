"""The structures of an HDF5 file: object headers, groups, heaps and B-trees, each read with its bounds checked.

Written from the HDF5 file format specification (The HDF Group, version 3.0). It covers what h5py writes by default,
which is what Keras files are made of; anything else (dense storage of links, links to other files, shared types)
raises `Unsupported`. Contradictions in the file raise `ValueError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

MAGIC = b"\x89HDF\r\n\x1a\n"
NOWHERE = 2**64 - 1  # the address of what was never written
USER_BLOCKS = (0, 512, 1024, 2048)  # where a file may begin
MOST_STEPS = 2_000_000  # structures that one file may make us visit
(DATASPACE, LINK_INFO, DATATYPE, LINK, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE,
 ATTRIBUTE_INFO) = 0x1, 0x2, 0x3, 0x6, 0x8, 0xB, 0xC, 0x10, 0x11, 0x15
SHARED, SHARED_TYPE = 2, 1  # flags of messages and of attributes
SOFT_LINK_CACHE = 2


class Unsupported(Exception):
    """A sound file uses a part of HDF5 that is not read."""


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of an object header: its kind and its bytes."""

    kind: int
    data: memoryview


class Structure:
    """Numbers and structures at the addresses of one file."""

    def __init__(self, data: bytes) -> None:
        start = next((start for start in USER_BLOCKS if data[start:start + 8] == MAGIC), None)
        if start is None:
            raise ValueError("the signature is missing")
        self.data = memoryview(data)[start:]
        self.steps_left = MOST_STEPS
        self._headers: dict[int, list[Message]] = {}
        self._heaps: dict[int, dict[int, memoryview]] = {}
        self.root = self._root()

    def part(self, address: int, size: int) -> memoryview:
        """`size` bytes at `address`."""
        if not 0 <= address <= address + size <= len(self.data):
            raise ValueError("an address lies outside of the file")
        return self.data[address:address + size]

    def number(self, address: int, width: int = 8) -> int:
        """The unsigned integer at `address`."""
        return int.from_bytes(self.part(address, width), "little")

    def step(self) -> None:
        """Counts one structure: a damaged file may lead round in circles."""
        self.steps_left -= 1
        if self.steps_left < 0:
            raise ValueError("its structures lead round in circles")

    def signature(self, address: int, expected: bytes) -> None:
        """Checks the four letters that a structure begins with."""
        self.step()
        if self.part(address, 4) != expected:
            raise ValueError(f"the structure {expected.decode()} is missing")

    def _root(self) -> int:
        version = self.number(8, 1)
        widths = self.part(13, 2) if version < 2 else self.part(9, 2)
        if bytes(widths) != b"\x08\x08":
            raise Unsupported("addresses that are not eight bytes wide")
        if version in (0, 1):
            base = 24 + 4 * version
            return self.number(base + 32 + 8)
        if version in (2, 3):
            return self.number(36)
        raise Unsupported(f"a superblock of version {version}")

    def messages(self, address: int) -> list[Message]:
        """All messages of the object whose header is at `address`."""
        if address not in self._headers:
            newer = self.part(address, 4) == b"OHDR"
            self._headers[address] = list(self._newer(address) if newer else self._older(address))
        return self._headers[address]

    def _older(self, address: int) -> Iterator[Message]:
        if self.number(address, 1) != 1:
            raise ValueError("an object header has an unknown version")
        blocks = [(address + 16, self.number(address + 8, 4))]
        while blocks:
            position, size = blocks.pop(0)
            end = position + size
            while position + 8 <= end:
                self.step()
                kind, length, flags = (self.number(position + at, width) for at, width in ((0, 2), (2, 2), (4, 1)))
                yield from self._message(kind, flags, position + 8, length, blocks)
                position += 8 + length

    def _newer(self, address: int) -> Iterator[Message]:
        flags = self.number(address + 5, 1)
        if self.number(address + 4, 1) != 2:
            raise ValueError("an object header has an unknown version")
        position = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        prefix = 6 if flags & 4 else 4
        blocks = [(position + width, self.number(position, width))]
        first = True
        while blocks:
            position, size = blocks.pop(0)
            if not first:
                self.signature(position, b"OCHK")
                position, size = position + 4, size - 8
            first = False
            end = position + size
            while position + prefix <= end:
                self.step()
                kind, length, mark = (self.number(position + at, width) for at, width in ((0, 1), (1, 2), (3, 1)))
                yield from self._message(kind, mark, position + prefix, length, blocks)
                position += prefix + length

    def _message(self, kind: int, flags: int, address: int, length: int,
                 blocks: list[tuple[int, int]]) -> Iterator[Message]:
        if kind == CONTINUATION:
            blocks.append((self.number(address), self.number(address + 8)))
        elif kind in (DATASPACE, DATATYPE, LAYOUT, FILTERS, ATTRIBUTE) and flags & SHARED:
            raise Unsupported("types that several objects share")
        else:
            yield Message(kind, self.part(address, length))

    def links(self, address: int) -> dict[str, int]:
        """The members of the group at `address`: names and the addresses of their headers."""
        found: dict[str, int] = {}
        for message in self.messages(address):
            if message.kind == SYMBOL_TABLE:
                tree, heap = _number(message.data, 0, 8), _number(message.data, 8, 8)
                self._signed_heap(heap)
                for name, member in self._symbols(tree, self.number(heap + 24), self.number(heap + 8)):
                    _add(found, name, member)
            elif message.kind == LINK:
                _add(found, *_link(message.data))
            elif message.kind == LINK_INFO:
                heap = _number(message.data, 2 + (8 if message.data[1] & 1 else 0), 8)
                if heap != NOWHERE:
                    raise Unsupported("groups with densely stored links")
        return found

    def is_group(self, address: int) -> bool:
        """Whether the object at `address` is a group."""
        return any(message.kind in (SYMBOL_TABLE, LINK_INFO) for message in self.messages(address))

    def _signed_heap(self, address: int) -> None:
        self.signature(address, b"HEAP")

    def _symbols(self, tree: int, names: int, names_size: int) -> Iterator[tuple[str, int]]:
        for node in self.tree_leaves(tree, kind=0, key_size=8):
            self.signature(node.child, b"SNOD")
            for index in range(self.number(node.child + 6, 2)):
                self.step()
                entry = node.child + 8 + 40 * index
                if self.number(entry + 16, 4) == SOFT_LINK_CACHE:
                    raise Unsupported("links to other places")
                yield self._name(names, names_size, self.number(entry)), self.number(entry + 8)

    def _name(self, names: int, size: int, offset: int) -> str:
        if offset >= size:
            raise ValueError("a name lies outside of its heap")
        text = bytes(self.part(names + offset, min(size - offset, 4096)))
        return text.partition(b"\0")[0].decode()

    def tree_leaves(self, address: int, kind: int, key_size: int, level: int | None = None) -> Iterator[Leaf]:
        """Keys and children of the lowest level of a B-tree of version 1."""
        self.signature(address, b"TREE")
        at = self.number(address + 5, 1)
        if self.number(address + 4, 1) != kind or (level is not None and at != level):
            raise ValueError("a B-tree is of the wrong kind")
        for index in range(self.number(address + 6, 2)):
            self.step()
            key = address + 24 + index * (key_size + 8)
            child = self.number(key + key_size)
            if at:
                yield from self.tree_leaves(child, kind, key_size, at - 1)
            else:
                yield Leaf(self.part(key, key_size), child)

    def heap_object(self, address: int, index: int) -> memoryview:
        """An object of a global heap, where values of varying length lie."""
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        if index not in self._heaps[address]:
            raise ValueError("a value is missing in its heap")
        return self._heaps[address][index]

    def _heap(self, address: int) -> dict[int, memoryview]:
        self.signature(address, b"GCOL")
        end = address + self.number(address + 8)
        position = address + 16
        found = {}
        while position + 16 <= end:
            self.step()
            index, size = self.number(position, 2), self.number(position + 8)
            if index == 0:
                break
            found[index] = self.part(position + 16, size)
            position += 16 + -(-size // 8) * 8
        return found


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One entry of a B-tree: the key as bytes and the address that it leads to."""

    key: memoryview
    child: int


def _link(data: memoryview) -> tuple[str, int]:
    flags = data[1]
    position = 2
    if flags & 8:
        if data[2] != 0:
            raise Unsupported("links to other places")
        position += 1
    position += (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    length = _number(data, position, width)
    name = bytes(data[position + width:position + width + length])
    return name.decode(), _number(data, position + width + length, 8)


def _number(data: memoryview, position: int, width: int) -> int:
    if position + width > len(data):
        raise ValueError("a message is too short")
    return int.from_bytes(data[position:position + width], "little")


def _add(found: dict[str, int], name: str, address: int) -> None:
    if not name or name in (".", "..") or "/" in name or name in found:
        raise ValueError(f"a group has the impossible or repeated member {name[:60]!r}")
    found[name] = address
