"""The wire format of protocol buffers, as far as reading ONNX needs it: fields by number, nothing else."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Value = int | memoryview


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Number, wire type and value of each field of a message; raises ValueError where the bytes are no message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field has the number 0")
        if wire == VARINT:
            value, position = _varint(message, position)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, position = _varint(message, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"a field has the unknown wire type {wire}")
        if position + length > len(message):
            raise ValueError("a field reaches beyond its message")
        yield number, wire, message[position:position + length]
        position += length


def varints(wire: int, value: Value) -> list[int]:
    """A repeated integer field: one number, or many packed ones."""
    if wire == VARINT:
        return [value]
    found, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        found.append(number)
    return found


def signed(number: int) -> int:
    """The int64 that a varint stands for."""
    return number - 2**64 if number >= 2**63 else number


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends inside a number")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (2**64 - 1), position
    raise ValueError("a number is longer than ten bytes")
