"""Arrays in memory or in an .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.data.dataset import ArrayDataset, Dataset
from transfer_jax.data.targets import TARGETS

KEYS = ("image", "label", "mask", *TARGETS)
Columns = Mapping[str, tuple[str, ...]]


def arrays_source(*, path: str = "", class_names: tuple[str, ...] | None = None,
                  arrays: dict[str, str] | None = None,
                  columns: dict[str, tuple[str, ...]] | None = None) -> dict[str, Dataset]:
    """An .npz file with the arrays `image` [, `label`] [, `mask`] and others (split 'train'), or `<split>_image` ...

    `arrays` names those of a file with other names, and leaves all others out: {"train_image": "x_train",
    "train_label": "y_train"}. Shapes and types as in `from_arrays`; labels may also be [n, 1].
    """
    file = Path(path).expanduser()
    if not path or not file.is_file():
        raise UserError(f"the array file {path!r} does not exist; give the `path` of an .npz file")
    try:
        with np.load(file, allow_pickle=False) as archive:
            for name in (arrays or {}).values():
                if name not in archive.files:
                    raise unknown("array", name, archive.files, path)
            found = {ours: archive[name] for ours, name in (arrays or {key: key for key in archive.files}).items()}
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path!r} is no .npz file of plain arrays ({error}); save it with numpy.savez") from error
    found = {name: value[:, 0] if name.endswith("label") and value.ndim == 2 and value.shape[1] == 1 else value
             for name, value in found.items()}
    return from_arrays(found, class_names, origin=file.name, columns=columns)


def from_arrays(arrays: Mapping[str, np.ndarray], class_names: Sequence[str] | None = None,
                origin: str = "arrays", columns: Columns | None = None) -> dict[str, Dataset]:
    """Splits from arrays: `image` [n,H,W] or [n,H,W,C], `label` integer [n] (-1: not known), `mask` integer [n,H,W].

    Images are uint8, or floats within [0, 1]. The names may carry a split, `test_image`; without one they are the
    split 'train'. `class_names` defaults to '0', '1', ... up to the largest label (or mask value) of any split.

    Other kinds of label, see `targets.py`: `labels` [n,K] of 0, 1 and -1, `target` [n] or [n,D], `keypoints` [n,K,2] or
    [n,K,3] with x and y in units of the image, `depth` [n,H,W], `normals` [n,H,W,3]. `columns` names the K classes of
    `labels`, the D numbers and the K points, {'labels': ('cat', 'dog')}, by default '0', '1', ...
    """
    splits: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        split, _, kind = name.rpartition("_")
        if kind not in KEYS:
            raise UserError(f"{origin}: the array {name!r} is unknown; call it {', '.join(KEYS[:-1])} or {KEYS[-1]}, "
                            "or <split>_image and so on")
        splits.setdefault(split or "train", {})[kind] = np.asarray(array)
    if not splits:
        raise UserError(f"{origin}: there is no array; give at least 'image'")
    for split, parts in splits.items():
        _check(parts, f"{origin}, split {split!r}")
    if class_names is None:
        kind = "label" if all("label" in parts for parts in splits.values()) else "mask"
        top = max((_highest(parts[kind]) for parts in splits.values() if kind in parts), default=-1)
        class_names = [str(number) for number in range(top + 1)]
    for split, parts in splits.items():
        if "label" in parts and _highest(parts["label"]) >= len(class_names):
            raise UserError(f"{origin}, split {split!r}: the labels reach {parts['label'].max()}, but there are "
                            f"{len(class_names)} class_names; name them all")
    named = _columns(splits, columns or {}, origin)
    return {split: ArrayDataset(as_bytes(parts["image"], f"{origin}, split {split!r}"), parts.get("label"),
                                class_names, parts.get("mask"), f"{origin} {split}",
                                {kind: parts[kind] for kind in TARGETS if kind in parts}, named)
            for split, parts in splits.items()}


def _columns(splits: Mapping[str, Mapping[str, np.ndarray]], given: Columns, origin: str) -> dict[str, tuple[str, ...]]:
    """Names of the columns of every kind of label that has some; all splits must have equally many."""
    found: dict[str, tuple[str, ...]] = {}
    for kind in given:
        if kind not in TARGETS or not TARGETS[kind].columns:
            raise unknown("kind of label", kind, [k for k, target in TARGETS.items() if target.columns],
                          f"{origin}, columns")
    for split, parts in splits.items():
        for kind in (kind for kind, target in TARGETS.items() if target.columns and kind in parts):
            count = parts[kind].shape[1] if parts[kind].ndim > 1 else 1
            names = given.get(kind) or found.get(kind) or tuple(map(str, range(count)))
            if len(names) != count:
                raise UserError(f"{origin}, split {split!r}: {kind!r} has {count} columns, but there are {len(names)} "
                                f"names of them or columns of another split; make them alike")
            found[kind] = tuple(names)
    return found


def _check(parts: Mapping[str, np.ndarray], where: str) -> None:
    if "image" not in parts:
        raise UserError(f"{where}: there is no 'image' array; add it")
    image = parts["image"]
    if image.ndim not in (3, 4):
        raise UserError(f"{where}: 'image' has the shape {image.shape}; it must be [n,height,width] or "
                        "[n,height,width,channels]")
    for kind, wanted in (("label", image.shape[:1]), ("mask", image.shape[:3])):
        array = parts.get(kind)
        if array is None:
            continue
        if array.shape != wanted:
            raise UserError(f"{where}: {kind!r} has the shape {array.shape}, but the images call for {wanted}")
        if array.dtype.kind not in "iu" or array.min(initial=0) < (-1 if kind == "label" else 0):
            raise UserError(f"{where}: {kind!r} must hold whole numbers from 0, and -1 for a label that is not known; "
                            f"it is {array.dtype}, from {array.min(initial=0)} (other numbers are a 'target')")
    for kind in (kind for kind in TARGETS if kind in parts):
        array = parts[kind]
        shapes = TARGETS[kind].shapes(*image.shape[1:3], array.shape[1] if array.ndim > 1 else 1)
        if array.dtype.kind not in "biuf" or array.shape not in {(len(image), *shape) for shape in shapes}:
            wanted = " or ".join(str([len(image), *shape]) for shape in shapes)
            raise UserError(f"{where}: {kind!r} is {array.dtype} of the shape {list(array.shape)}; it must hold "
                            f"numbers of the shape {wanted}")


def _highest(array: np.ndarray) -> int:
    """The largest value, -1 of none; bytes have no -1 to start from."""
    return int(array.max()) if array.size else -1


def as_bytes(image: np.ndarray, where: str) -> np.ndarray:
    """uint8 as it is; floats within [0, 1] scaled to 0..255; anything else is an error."""
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f":
        raise UserError(f"{where}: images of type {image.dtype} are not understood; give uint8, or floats in [0, 1]")
    low, high = float(image.min(initial=0.0)), float(image.max(initial=0.0))
    if not (low >= 0 and high <= 1):
        raise UserError(f"{where}: float images must lie in [0, 1]; these reach from {low:g} to {high:g}: rescale them")
    return np.rint(image * 255).astype(np.uint8)
