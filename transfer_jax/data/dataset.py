"""Random access to decoded examples, whatever the storage: the one face that all sources show to streams."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data.decoding import UnreadableImage, decode_image, decode_mask


class Dataset:
    """A fixed, ordered set of examples.

    Attributes: `class_names`, the classes of `labels` in the order of their numbers (for data with masks and no
    labels: the classes of the mask); `box_class_names`, those of boxes; `labels`, int32 [n] read without decoding an
    image (-1: not known), or None; `domains`, int32 [n] or None, and `domain_names` (merged data only); `partial`, the
    kinds of label that some of its examples lack; `columns`, of a kind of `TARGETS` the names of its columns;
    `words`, those that the numbers in `tokens` stand for (texts only).
    """

    class_names: tuple[str, ...] = ()
    box_class_names: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    words: tuple[str, ...] = ()

    @functools.cached_property
    def partial(self) -> frozenset[str]:
        return frozenset({"label"} if self.labels is not None and (np.asarray(self.labels) < 0).any() else ())

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} defines no length")

    def load(self, row: int) -> dict[str, Any]:
        """`image` uint8 [H,W,C], or `tokens` of a text; where the data have them, `label` int (-1: not known), `mask`
        int32 [H,W], `boxes` float32 [k,4] (ymin, xmin, ymax, xmax in units of the image) with `box_labels` int32 [k],
        and any of `TARGETS`.

        Raises UnreadableImage, naming the example, when it cannot be decoded.
        """
        raise TypeError(f"{type(self).__name__} defines no way to load row {row}")

    def name_of(self, row: int) -> str:
        """Where the example lies, for messages and reports."""
        return f"row {row}"

    def text_of(self, row: int) -> str:
        """The text that the example is; '' for one that is none."""
        del row
        return ""

    def stamp(self, row: int) -> bytes:
        """Bytes that change when the stored image changes: by default the decoded image itself."""
        image = np.ascontiguousarray(self.load(row)["image"])
        return hashlib.sha256(repr((image.shape, str(image.dtype))).encode() + image.tobytes()).digest()


class ArrayDataset(Dataset):
    """Examples held in memory: images uint8 [n,H,W] or [n,H,W,C], labels integer [n], masks integer [n,H,W], and
    `targets`, arrays [n, ...] by their kind."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] | None = None,
                 masks: np.ndarray | None = None, origin: str = "array",
                 targets: Mapping[str, np.ndarray] | None = None,
                 columns: Mapping[str, tuple[str, ...]] | None = None):
        self._images = images[..., None] if images.ndim == 3 else images
        self._masks = masks
        self._targets, self.columns = dict(targets or {}), dict(columns or {})
        self._origin = origin
        self.labels = None if labels is None else np.asarray(labels).astype(np.int32)
        numbered = self.labels if self.labels is not None else masks
        if class_names is None and numbered is not None:
            class_names = [str(number) for number in range(int(numbered.max(initial=-1)) + 1)]
        self.class_names = tuple(class_names or ())

    def __len__(self) -> int:
        return len(self._images)

    def load(self, row: int) -> dict[str, Any]:
        example: dict[str, Any] = {"image": self._images[row]}
        if self.labels is not None:
            example["label"] = int(self.labels[row])
        if self._masks is not None:
            example["mask"] = self._masks[row].astype(np.int32)
        return example | {kind: values[row] for kind, values in self._targets.items()}

    def name_of(self, row: int) -> str:
        return f"{self._origin}, row {row}"


class FileDataset(Dataset):
    """Image files on disk with one label each, and optionally one mask file (indexed or grey PNG) each; `targets` and
    `columns` as in `ArrayDataset`."""

    def __init__(self, paths: Sequence[Path], labels: np.ndarray | None, class_names: Sequence[str],
                 mask_paths: Sequence[Path] | None = None, targets: Mapping[str, np.ndarray] | None = None,
                 columns: Mapping[str, tuple[str, ...]] | None = None):
        self._paths = list(paths)
        self._targets, self.columns = dict(targets or {}), dict(columns or {})
        self._mask_paths = None if mask_paths is None else list(mask_paths)
        self.labels = None if labels is None else np.asarray(labels, np.int32)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, row: int) -> dict[str, Any]:
        example: dict[str, Any] = {"image": decode_image(self._paths[row])}
        if self.labels is not None:
            example["label"] = int(self.labels[row])
        if self._mask_paths is not None:
            example["mask"] = decode_mask(self._mask_paths[row])
            if example["mask"].shape != example["image"].shape[:2]:
                raise UnreadableImage(f"the mask {self._mask_paths[row]} is {example['mask'].shape}, its image "
                                      f"{example['image'].shape[:2]}; replace one of them")
        return example | {kind: values[row] for kind, values in self._targets.items()}

    def name_of(self, row: int) -> str:
        return str(self._paths[row])

    def stamp(self, row: int) -> bytes:
        """Size and time of the file: telling without reading it, as `make` does."""
        found = self._paths[row].stat()
        return f"{self._paths[row].name} {found.st_size} {found.st_mtime_ns}".encode()


class View(Dataset):
    """Some rows of another data set, in the given order."""

    def __init__(self, parent: Dataset, rows: np.ndarray):
        self._parent, self._rows = parent, np.asarray(rows, np.int64)
        self.class_names, self.domain_names = parent.class_names, parent.domain_names
        self.box_class_names, self.columns, self.words = parent.box_class_names, parent.columns, parent.words
        self.partial = parent.partial

    def __len__(self) -> int:
        return len(self._rows)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        labels = self._parent.labels
        return None if labels is None else labels[self._rows]

    @functools.cached_property
    def domains(self) -> np.ndarray | None:
        domains = self._parent.domains
        return None if domains is None else domains[self._rows]

    def load(self, row: int) -> dict[str, Any]:
        return self._parent.load(int(self._rows[row]))

    def name_of(self, row: int) -> str:
        return self._parent.name_of(int(self._rows[row]))

    def text_of(self, row: int) -> str:
        return self._parent.text_of(int(self._rows[row]))

    def stamp(self, row: int) -> bytes:
        return self._parent.stamp(int(self._rows[row]))


class Concatenation(Dataset):
    """Several data sets, one after the other, with one list of classes.

    With `domain_names`, `domains` holds for each row the number of the part that it comes from. `partial` names labels
    that some parts have and others lack; parts without classes of their own do not enter the comparison of classes.
    """

    def __init__(self, parts: Sequence[Dataset], domain_names: Sequence[str] = (), partial: Sequence[str] = ()):
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.class_names = same_classes([part for part in parts if part.class_names or not partial] or parts)
        self.domain_names = tuple(domain_names)
        boxed = {part.box_class_names for part in parts if part.box_class_names}
        self.box_class_names = boxed.pop() if len(boxed) == 1 else ()
        self.partial = frozenset(partial).union(*(part.partial for part in parts))
        self.columns = same_columns(parts)
        self.words = same_words(parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, row: int) -> tuple[Dataset, int]:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[part], row - int(self._starts[part])

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        labels = [part.labels for part in self._parts]
        if "label" in self.partial:
            labels = [np.full(len(part), -1, np.int32) if part.labels is None else part.labels for part in self._parts]
        return None if any(item is None for item in labels) else np.concatenate(labels)

    @functools.cached_property
    def domains(self) -> np.ndarray | None:
        if not self.domain_names:
            parts = [part.domains for part in self._parts]
            return None if any(item is None for item in parts) else np.concatenate(parts)
        return np.repeat(np.arange(len(self._parts), dtype=np.int32), np.diff(self._starts))

    def load(self, row: int) -> dict[str, Any]:
        part, inner = self._place(row)
        return part.load(inner)

    def name_of(self, row: int) -> str:
        part, inner = self._place(row)
        return part.name_of(inner)

    def text_of(self, row: int) -> str:
        part, inner = self._place(row)
        return part.text_of(inner)

    def stamp(self, row: int) -> bytes:
        part, inner = self._place(row)
        return part.stamp(inner)


def same_columns(parts: Sequence[Dataset]) -> dict[str, tuple[str, ...]]:
    """The common names of columns of `parts`, kind by kind; different ones are an error."""
    found: dict[str, tuple[str, ...]] = {}
    for number, part in enumerate(parts):
        for kind, names in part.columns.items():
            if found.setdefault(kind, tuple(names)) != tuple(names):
                raise UserError(f"the data sets that are joined name the columns of {kind!r} differently, data set "
                                f"{number}: {', '.join(names)}, others: {', '.join(found[kind])}; make them alike")
    return found


def same_words(parts: Sequence[Dataset]) -> tuple[str, ...]:
    """The list of words that all parts have in common; different ones are an error."""
    lists = {part.words for part in parts}
    if len(lists) > 1:
        raise UserError("the data sets that are joined number their words differently; give all of them the same "
                        "words_file")
    return lists.pop()


def same_classes(parts: Sequence[Dataset]) -> tuple[str, ...]:
    """The common class names of `parts`; different names or a different order are an error."""
    first = parts[0].class_names
    for number, part in enumerate(parts[1:], 1):
        if part.class_names != first:
            differing = sorted(set(first) ^ set(part.class_names)) or "the order"
            raise UserError(f"the data sets 0 and {number} that are joined have different classes ({differing} "
                            f"differs); keep the common ones with classes=[...]")
    return first
