"""What each part of a model reads: entries of a batch, or taps of the parts before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flax import struct

MISSING = "missing"  # in place of a tap: nothing is given there
Source = str | Sequence[str]


@struct.dataclass
class FromTaps:
    """An input that is made of taps: one array, or with several names a tuple, None where the name is `MISSING`."""

    names: tuple[str, ...] = struct.field(pytree_node=False)
    single: bool = struct.field(pytree_node=False, default=False)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the model whose taps are read."""
        return tuple(dict.fromkeys(name.partition("/")[0] for name in self.names if name != MISSING))


def read_inputs(inputs: Mapping[str, Source], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Part of the model -> what it reads; `inputs` are those of a stream."""
    return {part: batch[source] if (found := from_taps(source)) is None else found for part, source in inputs.items()}


def from_taps(source: Source) -> FromTaps | None:
    """What 'part/tap' or several of them stand for; None for an entry of the batch."""
    if isinstance(source, str):
        return FromTaps((source,), True) if "/" in source else None
    return FromTaps(tuple(source))


def entries(inputs: Mapping[str, Source]) -> tuple[str, ...]:
    """The entries of a batch that are read, in order, each once."""
    return tuple(dict.fromkeys(source for source in inputs.values() if from_taps(source) is None))
