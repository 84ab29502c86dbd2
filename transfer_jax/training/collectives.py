"""What the devices say to each other in a step, read from the text of a compiled program (optimised HLO)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation|branch_computations)="
                     r"(\{[^}]*\}|%?[\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\]")
_TRIPS = re.compile(r'known_trip_count[^0-9]*(\d+)')


@dataclass(frozen=True)
class Collective:
    """One operation between devices.

    Attributes:
      size: bytes of its result on one device.
      group: how many devices take part together.
      times: how often it runs; a loop whose length the program does not know counts once.
      looped: whether it lies in a loop. Ours over steps encloses all that belongs to a step: what lies outside runs
        once a dispatch.
      name: where in the model it comes from.
    """

    kind: str
    size: int
    group: int
    times: int = 1
    looped: bool = True
    name: str = ""

    @property
    def sent(self) -> float:
        """Bytes that each device sends, in a ring, which is the least for large arrays."""
        others = (self.group - 1) / self.group
        share = {"all-reduce": 2 * others, "all-gather": others, "all-to-all": others,
                 "reduce-scatter": self.group - 1, "collective-permute": 1}[self.kind]
        return self.times * share * self.size


def collectives(text: str) -> list[Collective]:
    """All operations between devices of a program; those of a single device are none."""
    parts, entry = _computations(text)
    head = text.partition("\n")[0]
    devices = math.prod(map(int, re.findall(r"(?:num_partitions|replica_count)=(\d+)", head)))
    return [one for one in _walk(parts, entry, 1, False, devices) if one.group > 1]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by its name, and which of them the program starts with."""
    parts: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        found = _COMPUTATION.match(line)
        if found:
            lines = parts.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        else:
            lines.append(line)
    return parts, entry


def _walk(parts: Mapping[str, list[str]], name: str, times: int, looped: bool, devices: int) -> Iterator[Collective]:
    for line in parts.get(name, ()):
        found = _OPERATION.match(line)
        if found:
            where = re.search(r'op_name="([^"]*)"', line)
            yield Collective(found[2], _size(found[1], started=found[2] != "all-reduce" and bool(found[3])),
                             _group(line, devices), times, looped, where[1] if where else "")
            continue
        loop = " while(" in line
        trips = _TRIPS.search(line) if loop else None
        for called in _CALLED.findall(line):
            for inner in re.findall(r"[\w.-]+", called):
                yield from _walk(parts, inner, times * (int(trips[1]) if trips else 1), looped or loop, devices)


def _size(shapes: str, started: bool) -> int:
    """Bytes of the arrays of a type. An operation that was only `started` also gives back its operand, first."""
    sizes = [math.prod(map(int, filter(None, dims.split(",")))) * _width(kind, bits)
             for kind, bits, dims in _ARRAY.findall(shapes)]
    return sizes[1] if started and len(sizes) > 1 else sum(sizes)


def _width(kind: str, bits: str) -> int:
    return 1 if kind == "pred" else max(1, int(bits or 8) // 8)


def _group(line: str, devices: int) -> int:
    """How many devices take part together, in any of the notations of `replica_groups`."""
    if "source_target_pairs=" in line:
        pairs = re.findall(r"\{(\d+),(\d+)\}", line.split("source_target_pairs=")[1])
        return 2 if any(a != b for a, b in pairs) else 1
    text = line.split("replica_groups=")[1] if "replica_groups=" in line else "{}"
    if text.startswith("mesh["):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", text.split("]")[0]))
        axes = re.search(r"\] ?(?:, ?device_ids=\(.*?\) )?\{([^}]*)\}", text)
        named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[1] if axes else "")
        return math.prod(int(part or sizes[axis]) for axis, part in named)
    listed = re.match(r"\[\d+,(\d+)\]", text)
    if listed:
        return int(listed[1])
    first = re.match(r"\{\{([\d,]+)\}", text)
    return len(first[1].split(",")) if first else devices
