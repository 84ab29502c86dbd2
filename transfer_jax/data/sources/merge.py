"""Several data sets as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.data.dataset import Concatenation, Dataset
from transfer_jax.data.label_space import unite
from transfer_jax.data.relabelling import Relabelled, keep_classes
from transfer_jax.data.splits import take_split
from transfer_jax.data.targets import TARGETS

Classes = tuple[str | int, ...] | dict[str, str | None]


@dataclasses.dataclass(frozen=True)
class _Part:
    """An opened entry of `parts`."""

    splits: Mapping[str, Dataset]
    split: str | None
    classes: Classes
    name: str

    def take(self, split: str) -> Dataset:
        """A split with the classes that the part keeps."""
        kept = () if isinstance(self.classes, dict) else self.classes
        return keep_classes(take_split(self.splits, split, self.name), kept, self.name)


def merge_source(*, parts: tuple[dict[str, Any], ...],
                 classes: Literal["same", "union", "common"] | dict[str, tuple[str, ...]] = "same",
                 left_out: tuple[str, ...] = ()) -> dict[str, Dataset]:
    """One data set from several; batches then carry `domain` int32, the number of the part.

    Each part is `{kind, ...arguments}` with optionally `split`, `classes` and `domain` (its name). `classes` of a part
    are those kept, in this order, or {old name: new name} (None: left out). Then the classes of all parts are united
    by name: they have to be the `same`, or become their `union` or what is `common`, or a map {new: (old, ...)} says
    of every class where it goes; examples of those `left_out` go. See `label_space.unite` for what counts as a
    conflict. Classes of labels (or masks) and classes of boxes are two lists, each united by itself; what is said of a
    class holds in the list, or both, that it is in. Labels that only some parts have are missing in the others: see
    `Dataset.partial`.

    Either every part names its split, and the merged data set has one split, 'train'; or none does, and the splits
    that all parts have are merged name by name.
    """
    if not parts:
        raise UserError("a data set of kind 'merge' needs at least one entry in 'parts'")
    opened = [_open_part(dict(part), f"parts.{number}") for number, part in enumerate(parts)]
    given = [part.split is not None for part in opened]
    if any(given) and not all(given):
        raise UserError("either every part of a 'merge' names its split or none does; add or remove 'split'")
    if all(given):
        return {"train": _merged(opened, [part.take(part.split) for part in opened], classes, left_out)}
    common = [name for name in opened[0].splits if all(name in part.splits for part in opened)]
    if not common:
        raise UserError("the parts of the 'merge' have no split in common; give each its 'split'")
    return {split: _merged(opened, [part.take(split) for part in opened], classes, left_out) for split in common}


def _merged(parts: Sequence[_Part], chosen: list[Dataset], classes: str | Mapping[str, tuple[str, ...]],
            left_out: tuple[str, ...]) -> Dataset:
    """The chosen rows of all parts in one label space."""
    kinds = [_kinds_of_label(dataset) for dataset in chosen]
    partial = frozenset().union(*kinds) - frozenset.intersection(*kinds)
    if "mask" in partial and "label" in partial:
        raise UserError("some parts of the 'merge' have labels and others have masks, whose classes are not the same "
                        "thing; give each a stream and a task of its own, which one stage can train together")
    names = {number: dataset.class_names for number, dataset in enumerate(chosen) if kinds[number] & {"label", "mask"}}
    boxes = {number: dataset.box_class_names for number, dataset in enumerate(chosen) if dataset.box_class_names}
    renames = {number: part.classes for number, part in enumerate(parts) if isinstance(part.classes, dict)}
    said = _Wishes(renames, classes, left_out)
    given = said.apart(names, boxes) if names and boxes else [said, said]
    for of_boxes, (found, wishes) in enumerate(zip((names, boxes), given, strict=True)):
        if not found:
            continue
        where = "the data set of kind 'merge'" + (", classes of boxes" if names and of_boxes else "")
        space = unite([(parts[number].name, own) for number, own in found.items()], wishes.classes,
                      [wishes.renames.get(number, {}) for number in found], wishes.left_out, where)
        for (number, own), new in zip(found.items(), space.numbers, strict=True):
            if own != space.class_names or new.tolist() != list(range(len(new))):
                chosen[number] = Relabelled(chosen[number], *((None, (), new, space.class_names) if of_boxes
                                                              else (new, space.class_names)))
    return Concatenation(chosen, [part.name for part in parts], partial)


@dataclasses.dataclass(frozen=True)
class _Wishes:
    """What the user says of classes; see `merge_source`."""

    renames: Mapping[int, Mapping[str, str | None]]
    classes: str | Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]

    def apart(self, names: Mapping[int, tuple[str, ...]], boxes: Mapping[int, tuple[str, ...]]) -> list[_Wishes]:
        """What is said of the classes of labels or masks, and of those of boxes; of what is neither the first has it,
        where it is found to be none. A map that names nothing of one of them leaves that one as it is."""
        own = [_Wishes({number: {old: new for old, new in one.items()
                                 if (old in boxes.get(number, ()) and (of_boxes or old in names.get(number, ())))
                                 or (not of_boxes and old not in boxes.get(number, ()))}
                        for number, one in self.renames.items()}, self.classes, self.left_out)
               for of_boxes in (False, True)]
        known = [{one.renames.get(number, {}).get(name, name) for number, row in found.items() for name in row}
                 for one, found in zip(own, (names, boxes), strict=True)]
        for of_boxes, one in enumerate(own):
            def mine(name: str, of_boxes: int = of_boxes) -> bool:
                return name in known[1] if of_boxes else name in known[0] or name not in known[1]

            classes = one.classes
            if not isinstance(classes, str):
                chosen = {new: tuple(filter(mine, olds)) for new, olds in classes.items()}
                classes = {new: olds for new, olds in chosen.items() if olds} or "same"
            own[of_boxes] = dataclasses.replace(one, classes=classes, left_out=tuple(filter(mine, self.left_out)))
        return own


def _kinds_of_label(dataset: Dataset) -> frozenset[str]:
    """Which labels its examples have, told by the first."""
    if not len(dataset):
        return frozenset()
    return frozenset({"label", "mask", *TARGETS} & set(dataset.load(0)))


def _open_part(part: dict[str, Any], where: str) -> _Part:
    from transfer_jax.data import open_source  # the registry holds this very function, so it can only be met late

    split, classes, domain = part.pop("split", None), part.pop("classes", ()), part.pop("domain", None)
    component = build(Component, part, where)
    return _Part(open_source(component, where), split, classes if isinstance(classes, dict) else tuple(classes or ()),
                 str(domain or f"{component.kind}{where[6:]}"))
