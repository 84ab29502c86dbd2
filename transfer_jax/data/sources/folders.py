"""The user's own images in class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data.dataset import Dataset, FileDataset

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
SPLIT_NAMES = ("train", "val", "valid", "validation", "test")


def folder_source(*, path: str) -> dict[str, Dataset]:
    """`path/<class>/*.jpg` (one split, called 'train') or `path/<split>/<class>/*.jpg` with train, val, test inside.

    Classes are the folder names, sorted; every split must have the same ones. Files of other types are passed over.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"the image folder {path!r} does not exist; correct `path`")
    inside = _folders(root)
    splits = {item.name: item for item in inside if item.name in SPLIT_NAMES}
    if not splits or len(splits) < len(inside):
        return {"train": _class_folders(root)}
    found = {name: _class_folders(splits[name]) for name in SPLIT_NAMES if name in splits}
    first = next(iter(found))
    for name, dataset in found.items():
        odd = set(dataset.class_names) ^ set(found[first].class_names)
        if odd:
            raise UserError(f"the splits {first!r} and {name!r} of {path!r} have different classes: "
                            f"{', '.join(sorted(odd))} stand in one only; make their class folders agree")
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))


def _class_folders(root: Path) -> FileDataset:
    classes = _folders(root)
    if not classes:
        raise UserError(f"the image folder {str(root)!r} holds no class folder; expected {root.name}/<class>/*.jpg")
    paths: list[Path] = []
    labels: list[int] = []
    for number, folder in enumerate(classes):
        images = sorted(item for item in folder.rglob("*") if item.suffix.lower() in SUFFIXES and item.is_file())
        if not images:
            raise UserError(f"the class folder {str(folder)!r} holds no image ({', '.join(sorted(SUFFIXES))}); "
                            "fill or remove it")
        paths += images
        labels += [number] * len(images)
    return FileDataset(paths, np.array(labels), [folder.name for folder in classes])
