"""The user's own images: class folders, and tables of paths and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError, unknown
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


def table_source(*, path: str, path_column: str = "path", label_column: str | None = "label",
                 split_column: str = "split", mask_column: str = "mask",
                 mask_classes: tuple[str, ...] = ()) -> dict[str, Dataset]:
    """A CSV or Parquet file with one row per image: path, label (any text or number), optionally split and mask.

    Paths are relative to the table's folder. Classes are the labels of the whole table, sorted (as numbers when all
    are whole numbers). Without a split column all rows are the split 'train'. A mask column names images of class
    numbers, called `mask_classes`; then the label column may be absent (label_column=None or no such column).
    """
    file = Path(path).expanduser()
    columns = _read_table(file)
    if path_column not in columns:
        raise unknown("path_column", path_column, list(columns), f"the table {path!r}")
    has_masks = mask_column in columns
    if label_column is not None and label_column not in columns:
        if not has_masks:
            raise unknown("label_column", label_column, list(columns), f"the table {path!r}")
        label_column = None
    _no_gaps(columns, [path_column, label_column, mask_column, split_column], path)
    paths = [file.parent / str(item) for item in columns[path_column]]
    masks = [file.parent / str(item) for item in columns[mask_column]] if has_masks else None
    names, labels = _number_labels(columns[label_column]) if label_column else (mask_classes, None)
    groups = np.array([str(item) for item in columns.get(split_column, ["train"] * len(paths))])
    result: dict[str, Dataset] = {}
    for split in dict.fromkeys(groups.tolist()):
        rows = np.flatnonzero(groups == split)
        result[split] = FileDataset([paths[row] for row in rows], None if labels is None else labels[rows], names,
                                    None if masks is None else [masks[row] for row in rows])
    return result


def _read_table(file: Path) -> dict[str, list[Any]]:
    import pyarrow.csv
    import pyarrow.parquet

    if not file.is_file():
        raise UserError(f"the table {str(file)!r} does not exist; correct `path`")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            table = pyarrow.parquet.read_table(file)
        else:
            table = pyarrow.csv.read_csv(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"the table {str(file)!r} is neither CSV nor Parquet ({str(error).splitlines()[0]}); "
                        "mend it") from error
    if table.num_rows == 0:
        raise UserError(f"the table {str(file)!r} holds no row; give one row per image")
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _no_gaps(columns: dict[str, list], wanted: list[str | None], path: str) -> None:
    for name in wanted:
        for row, item in enumerate(columns.get(name or "", [])):
            if item is None or item == "":
                raise UserError(f"the table {path!r} has no {name!r} in its data row {row + 1}; fill or remove the row")


def _number_labels(values: list[Any]) -> tuple[tuple[str, ...], np.ndarray]:
    texts = [str(value) for value in values]
    distinct = set(texts)
    numeric = all(text.lstrip("-").isdigit() for text in distinct)
    names = sorted(distinct, key=int) if numeric else sorted(distinct)
    number = {name: place for place, name in enumerate(names)}
    return tuple(names), np.array([number[text] for text in texts], np.int32)
