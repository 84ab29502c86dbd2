"""The split language (TFDS syntax): `train`, `train[:80%]`, `train[10:20]`, `train+test`, `*[:50%]`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data.dataset import Concatenation, Dataset, View

_TERM = re.compile(r"^\s*(?P<name>[\w.\-/]+|\*)\s*(?P<slice>\[.*\])?\s*$")
_SLICE = re.compile(r"^\[\s*(?P<start>-?\d+%?)?\s*:\s*(?P<stop>-?\d+%?)?\s*\]$")


def slice_bounds(text: str, count: int, where: str) -> tuple[int, int]:
    """(start, stop) of a slice such as '[10:20]', '[:80%]' or '[-5:]' of `count` items.

    Percentages are rounded to the nearest item as in TFDS, so '[:p%]' and '[p%:]' never overlap nor leave a gap.
    Numbers beyond the end are cut; text that is no slice is a UserError.
    """
    match = _SLICE.match(text.strip())
    if match is None:
        raise UserError(f"{where}: {text!r} is no slice; write for example '[:80%]' or '[10:20]'")
    start = _bound(match["start"], 0, count, where)
    stop = _bound(match["stop"], count, count, where)
    return start, max(start, stop)


def _bound(text: str | None, default: int, count: int, where: str) -> int:
    if text is None:
        return default
    if text.endswith("%"):
        percent = int(text[:-1])
        if abs(percent) > 100:
            raise UserError(f"{where}: {text} is more than 100%; use a percentage between 0 and 100")
        value = round(percent * count / 100)
    else:
        value = int(text)
    return min(max(value + count if value < 0 else value, 0), count)


def take_split(splits: Mapping[str, Dataset], expression: str, where: str) -> Dataset:
    """The data set that a split expression names; an unknown split or an empty result is a UserError."""
    parts = [_take_term(splits, term, where) for term in expression.split("+")]
    if not sum(len(part) for part in parts):
        raise UserError(f"{where}: the split {expression!r} holds no example; the splits are {_sizes(splits)}")
    return parts[0] if len(parts) == 1 else Concatenation(parts)


def _take_term(splits: Mapping[str, Dataset], term: str, where: str) -> Dataset:
    match = _TERM.match(term)
    if match is None:
        raise UserError(f"{where}: the split {term!r} cannot be read; write for example 'train[:80%]+test'")
    name = match["name"]
    if name == "*":
        whole: Dataset = Concatenation(list(splits.values())) if len(splits) > 1 else next(iter(splits.values()))
    elif name in splits:
        whole = splits[name]
    else:
        raise UserError(f"{where}: there is no split {name!r}; the splits are {_sizes(splits)}")
    if match["slice"] is None:
        return whole
    start, stop = slice_bounds(match["slice"], len(whole), where)
    return View(whole, np.arange(start, stop))


def _sizes(splits: Mapping[str, Dataset]) -> str:
    return ", ".join(f"{name!r} ({len(part)} examples)" for name, part in splits.items())
