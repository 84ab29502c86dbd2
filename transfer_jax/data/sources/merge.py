"""Several data sets as one."""

from __future__ import annotations

from typing import Any

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.data.dataset import Concatenation, Dataset, keep_classes
from transfer_jax.data.splits import take_split


def merge_source(*, parts: tuple[dict[str, Any], ...]) -> dict[str, Dataset]:
    """One data set from several with the same classes; batches then carry `domain` int32, the number of the part.

    Each part is `{kind, ...arguments}` with optionally `split`, `classes` (kept, in this order) and `domain` (its
    name). Either every part names its split, and the merged data set has one split, 'train'; or none does, and the
    splits that all parts have are merged name by name.
    """
    if not parts:
        raise UserError("a data set of kind 'merge' needs at least one entry in 'parts'")
    opened: list[tuple[dict[str, Dataset], str | None, tuple, str]] = []
    for number, part in enumerate(parts):
        opened.append(_open_part(dict(part), f"parts.{number}"))
    names = [domain for *_, domain in opened]
    given = [split is not None for _, split, _, _ in opened]
    if any(given) and not all(given):
        raise UserError("either every part of a 'merge' names its split or none does; add or remove 'split'")
    if all(given):
        chosen = [keep_classes(take_split(splits, split, name), classes, name)
                  for splits, split, classes, name in opened]
        return {"train": Concatenation(chosen, names)}
    common = [name for name in opened[0][0] if all(name in splits for splits, *_ in opened)]
    if not common:
        raise UserError("the parts of the 'merge' have no split in common; give each its 'split'")
    return {split: Concatenation([keep_classes(splits[split], classes, name) for splits, _, classes, name in opened],
                                 names) for split in common}


def _open_part(part: dict[str, Any], where: str) -> tuple[dict[str, Dataset], str | None, tuple, str]:
    from transfer_jax.data import open_source  # the registry holds this very function, so it can only be met late

    split, classes, domain = part.pop("split", None), part.pop("classes", ()), part.pop("domain", None)
    component = build(Component, part, where)
    return open_source(component, where), split, tuple(classes or ()), str(domain or f"{component.kind}{where[6:]}")
