"""One list of classes for several data sets: united by name or by an explicit map, and whatever is unclear reported."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from transfer_jax.core.errors import UserError, unknown

Names = tuple[str, ...]
SHOWN = 8  # conflicts that a message names


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """The united classes, and for every part int32 [its classes]: the new number of each, -1 for one left out."""

    class_names: Names
    numbers: tuple[np.ndarray, ...]


def unite(parts: Sequence[tuple[str, Names]], classes: str | Mapping[str, Names] = "same",
          renames: Sequence[Mapping[str, str | None]] | None = None, left_out: Names = (),
          where: str = "data") -> LabelSpace:
    """The label space of parts (name, its classes).

    Args:
      classes: 'same', the parts have equal classes in any order; 'union', all of them, in the order of their first
        appearance; 'common', those that every part has; or {new class: the old ones that it stands for}, which has to
        mention every class of every part.
      renames: of every part, {old: new}, done first; None as the new name leaves the class out; what is not mentioned
        keeps its name.
      left_out: classes, by the name that they have after that, whose examples are left out of all parts.

    Raises:
      UserError: one sentence with every conflict: an old class under two new ones, one that a rename would unite with
        another that nobody mentioned, one that is neither mapped nor left out, names of different parts that differ
        in nothing but case, hyphens or plural and were not written down by the user.
    """
    renames = [dict(one) for one in renames or [{}] * len(parts)]
    explicit = {new for one in renames for new in one.values() if new is not None}
    explicit |= set(left_out) | (set() if isinstance(classes, str) else set(classes))
    problems: list[str] = []
    named = []
    for (part, names), one in zip(parts, renames, strict=True):
        for old in one:
            if old not in names:
                raise unknown("class", old, names, f"{where}, part {part!r}, classes")
        problems += _collisions(part, names, one)
        found = [one.get(name, name) for name in names]
        named.append([None if name in left_out else name for name in found])
    renamed = {one.get(old, old) for (_, names), one in zip(parts, renames, strict=True) for old in names} - {None}
    for name in left_out:
        if name not in renamed:
            raise unknown("class", name, sorted(renamed), f"{where}.left_out")
    if not isinstance(classes, str):
        named, united = _mapped(parts, named, classes, problems)
    else:
        problems += _alike(parts, named, explicit)
        united = _joined(parts, named, classes, problems)
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{where}: the classes of the parts cannot be united: {'; '.join(problems[:SHOWN])}{more}")
    place = {name: number for number, name in enumerate(united)}
    return LabelSpace(united, tuple(np.array([place.get(name, -1) for name in found], np.int32) for found in named))


def _collisions(part: str, names: Names, renames: Mapping[str, str | None]) -> list[str]:
    """A new name that another class of the part has and keeps."""
    return [f"part {part!r} renames {old!r} to {new!r}, which is the name of another of its classes (write "
            f"{new!r}: {new!r} as well if the two are one)"
            for old, new in renames.items() if new is not None and new != old and new in names and new not in renames]


def _mapped(parts: Sequence[tuple[str, Names]], named: list[list[str | None]], classes: Mapping[str, Names],
            problems: list[str]) -> tuple[list[list[str | None]], Names]:
    """Every part's classes by their new names, and these; what is wrong is added to `problems`."""
    new_of: dict[str, str] = {}
    present = {name for found in named for name in found}
    for new, olds in classes.items():
        for old in olds:
            if old in new_of:
                problems.append(f"{old!r} is mapped to both {new_of[old]!r} and {new!r}")
            elif old not in present:
                problems.append(f"{old!r}, mapped to {new!r}, is a class of no part")
            new_of.setdefault(old, new)
    for (part, _), found in zip(parts, named, strict=True):
        forgotten = [name for name in found if name is not None and name not in new_of]
        if forgotten:
            problems.append(f"part {part!r} has {', '.join(map(repr, forgotten))}, which no class of the map mentions "
                            f"(map it, or name it in left_out)")
    return [[new_of.get(name) for name in found] for found in named], tuple(classes)


def _joined(parts: Sequence[tuple[str, Names]], named: list[list[str | None]], how: str,
            problems: list[str]) -> Names:
    union = tuple(dict.fromkeys(name for found in named for name in found if name is not None))
    common = tuple(name for name in union if all(name in found for found in named))
    if how == "common" and not common:
        problems.append("no class is common to all of them")
    if how == "same" and union != common:
        said = [f"{part!r} has no {', '.join(repr(name) for name in union if name not in found)}"
                for (part, _), found in zip(parts, named, strict=True) if not set(union) <= set(found)]
        problems.append(f"they have different classes, for {' and '.join(said)} (set classes='union' or 'common', "
                        f"or map them)")
    return common if how == "common" else union


def _alike(parts: Sequence[tuple[str, Names]], named: Sequence[Sequence[str | None]], explicit: set[str]) -> list[str]:
    """Pairs of names of two parts that look like one class."""
    found: dict[tuple[str, str], str] = {}
    for i, first in enumerate(named):
        for j, second in enumerate(named[:i]):
            for a in filter(None, first):
                for b in filter(None, second):
                    apart = a in second or b in first or (a in explicit and b in explicit)
                    if a != b and not apart and _differ_in_form(a, b):
                        found[b, a] = (f"{b!r} of {parts[j][0]!r} and {a!r} of {parts[i][0]!r} differ in form alone "
                                       f"(rename one, or write both names down if they are two classes)")
    return list(found.values())


def _differ_in_form(a: str, b: str) -> bool:
    """Whether two names are equal but for case, spaces, hyphens, underscores or an English plural."""
    a, b = (re.sub(r"[\s_-]+", "", name.casefold()) for name in (a, b))
    return a == b or b in _singulars(a) or a in _singulars(b)


def _singulars(name: str) -> set[str]:
    endings = (("ies", "y"), ("es", ""), ("s", ""))
    return {name.removesuffix(end) + put for end, put in endings if name.endswith(end) and len(name) > len(end) + 1}
