"""Which rows of a data set a stream shows: seeded, stratified, nested."""

from __future__ import annotations

import zlib

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data import order
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.splits import slice_bounds


def select(dataset: Dataset, per_class: str | None, seed: int, bad: frozenset[int] = frozenset(),
           where: str = "stream", within: str | None = None) -> np.ndarray:
    """Rows of `dataset` without those in `bad`, ascending, int32: all of them, or the slice `per_class` of each class,
    and of that the slice `within`.

    Within a class the rows are ordered by a permutation drawn from (seed, name of the class) before the bad ones
    leave, so the slices of one seed are nested, complementary, and alike whatever other classes there are. A slice
    that counts more examples than a class has is a UserError.
    """
    if per_class is None and within is None:
        rows = np.arange(len(dataset), dtype=np.int32)
        return rows[~np.isin(rows, list(bad))] if bad else rows
    labels = dataset.labels
    if labels is None:
        raise UserError(f"{where}: the data set has no labels, so labels_per_class, per_class and within cannot be "
                        "used; take a part of it with split='train[:10%]'")
    chosen = []
    for number, name in enumerate(dataset.class_names):
        members = np.flatnonzero(labels == number).astype(np.int32)
        ordered = members[order.permute(np.arange(len(members)), zlib.crc32(name.encode()), max(len(members), 1), seed)]
        ordered = ordered[~np.isin(ordered, list(bad))] if bad else ordered
        for text in filter(None, (per_class, within)):
            ordered = ordered[slice(*_bounds(text, len(ordered), name, where))]
        chosen.append(ordered)
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def _bounds(per_class: str, count: int, name: str, where: str) -> tuple[int, int]:
    start, stop = slice_bounds(per_class, count, where)
    first, last = (part.strip() for part in per_class.strip()[1:-1].split(":"))
    needed = max((int(part) for part in (first, last) if part and not part.endswith("%")), default=0)
    if needed > count:
        raise UserError(f"{where}: {needed} examples per class are asked for, but class {name!r} has {count}; "
                        f"use at most {count} or another split")
    return start, stop
