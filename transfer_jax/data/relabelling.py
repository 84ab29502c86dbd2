"""Classes of a data set chosen and numbered anew: those of labels, masks and boxes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.labels import VOID
from transfer_jax.data.dataset import Dataset, View


class Relabelled(View):
    """The rows of a data set whose classes have new numbers, which replace the old ones.

    `numbers`, int [old classes], holds the new number of each class, -1 for one whose rows go. Rows whose label is not
    known stay. In data with masks and no labels all rows stay, and pixels of a class that goes become `VOID`.
    `box_numbers` does that for classes of boxes: boxes of a class that goes are left out, their images stay. None: what
    the parent has.
    """

    def __init__(self, parent: Dataset, numbers: np.ndarray | None, class_names: Sequence[str] = (),
                 box_numbers: np.ndarray | None = None, box_class_names: Sequence[str] = ()):
        self._numbers = None if numbers is None else np.append(np.asarray(numbers, np.int32), -1)  # -1 serves label -1
        self._box_numbers = None if box_numbers is None else np.asarray(box_numbers, np.int32)
        labels = parent.labels
        kept = np.arange(len(parent)) if labels is None or numbers is None else \
            np.flatnonzero((labels < 0) | (self._numbers[np.maximum(labels, -1)] >= 0))
        super().__init__(parent, kept)
        self.class_names = parent.class_names if numbers is None else tuple(class_names)
        self.box_class_names = parent.box_class_names if box_numbers is None else tuple(box_class_names)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        labels = self._parent.labels
        if labels is None:
            return None
        return labels[self._rows] if self._numbers is None else self._numbers[labels[self._rows]]

    def load(self, row: int) -> dict[str, Any]:
        example = super().load(row)
        if self._box_numbers is not None and "boxes" in example:
            example |= _renumbered_boxes(example["boxes"], example.get("box_labels"), self._box_numbers)
        if self._numbers is None:
            return example
        if "label" in example:
            return {**example, "label": int(self._numbers[example["label"]])}
        if "mask" not in example:
            return example
        table = np.full(max(int(example["mask"].max(initial=0)) + 1, len(self._numbers) - 1), VOID, np.int32)
        table[:len(self._numbers) - 1] = np.where(self._numbers[:-1] < 0, VOID, self._numbers[:-1])
        return {**example, "mask": table[example["mask"]]}


def _renumbered_boxes(boxes: np.ndarray, labels: np.ndarray | None, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Boxes whose class stays, with its new number; one of a class that does not exist stays as it is, to be found."""
    boxes = np.asarray(boxes).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int32) if labels is None else np.asarray(labels, np.int32).reshape(-1)
    exists = (labels >= 0) & (labels < len(numbers))
    new = np.where(exists, numbers[np.where(exists, labels, 0)], labels)
    kept = ~exists | (new >= 0)
    return {"boxes": boxes[kept], "box_labels": new[kept]}


def keep_classes(dataset: Dataset, classes: Sequence[str | int], where: str) -> Dataset:
    """`dataset` reduced to `classes` (names, or numbers of the full list), renumbered in this order; () keeps all.

    Data with labels (or masks) and boxes have two lists of classes: each is reduced to those that it has, and stays
    whole where it has none of them. Numbers are those of the first list that there is.
    """
    if not classes:
        return dataset
    lists = dataset.class_names, dataset.box_class_names
    first = lists[0] or lists[1]
    if not first:
        raise UserError(f"{where}: the data set has no labels, so classes={list(classes)} cannot be chosen; remove it")
    names = []
    for item in classes:
        name = first[item] if isinstance(item, int) and 0 <= item < len(first) else str(item)
        if not any(name in known for known in lists):
            raise unknown("class", name, tuple(dict.fromkeys(lists[0] + lists[1])), where)
        names.append(name)
    if len(set(names)) < len(names):
        raise UserError(f"{where}: classes={list(classes)} names a class twice; name each once")
    reduced: list[Any] = []
    for known in lists:
        kept = [name for name in names if name in known]
        new = np.array([kept.index(name) if name in kept else -1 for name in known], np.int32)
        reduced += [new, kept] if kept else [None, known]
    return Relabelled(dataset, *reduced)
