"""The user's own images in tables: paths, and labels of several kinds, in CSV, TSV or Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.data.dataset import Dataset, FileDataset

Columns = Mapping[str, list[Any]]
TRUTHS = {"0": 0, "1": 1, "-1": -1, "None": -1, "": -1, "True": 1, "False": 0}  # of a column a class; -1: not known


def table_source(*, path: str, path_column: str = "path", label_column: str | None = "label",
                 split_column: str = "split", mask_column: str = "mask", mask_classes: tuple[str, ...] = (),
                 labels_column: str | None = None, separator: str = ";", label_columns: tuple[str, ...] = (),
                 label_names: tuple[str, ...] = (), target_columns: tuple[str, ...] = ()) -> dict[str, Dataset]:
    """A table with one row per image: path, label (any text or number), optionally split and mask.

    Paths are relative to the table's folder. Classes are the labels of the whole table, sorted (as numbers when all
    are whole numbers). Without a split column all rows are the split 'train'. A mask column names images of class
    numbers, called `mask_classes`. The label column may be absent (label_column=None or no such column) where there is
    another kind of label.

    Args:
        labels_column: names of the classes that an image shows, joined by `separator`; none of them: an empty cell.
            They become `labels`, in the order of `label_names`, by default sorted.
        label_columns: the same as a column a class, of 1, 0 and (not known) -1 or nothing.
        target_columns: numbers, which become `target`.
    """
    file = Path(path).expanduser()
    columns = read_table(file)
    if path_column not in columns:
        raise unknown("path_column", path_column, list(columns), f"the table {path!r}")
    targets, names = _other_labels(columns, path, labels_column, separator, label_columns, label_names, target_columns)
    has_masks = mask_column in columns
    if label_column is not None and label_column not in columns:
        if not has_masks and not targets:
            raise unknown("label_column", label_column, list(columns), f"the table {path!r}")
        label_column = None
    no_gaps(columns, [path_column, label_column, mask_column, split_column], path)
    paths = [file.parent / str(item) for item in columns[path_column]]
    masks = [file.parent / str(item) for item in columns[mask_column]] if has_masks else None
    classes, labels = number_labels(columns[label_column]) if label_column else (mask_classes, None)
    return {split: FileDataset([paths[row] for row in rows], None if labels is None else labels[rows], classes,
                               None if masks is None else [masks[row] for row in rows],
                               {kind: values[rows] for kind, values in targets.items()}, names)
            for split, rows in split_rows(columns, split_column, len(paths)).items()}


def _other_labels(columns: Columns, path: str, labels_column: str | None, separator: str,
                  label_columns: Sequence[str], label_names: tuple[str, ...], target_columns: Sequence[str],
                  ) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Labels of the kinds of `TARGETS` [n, columns], and the names of their columns."""
    for argument, wanted in (("labels_column", [labels_column] if labels_column else []),
                             ("label_columns", label_columns), ("target_columns", target_columns)):
        for name in wanted:
            if name not in columns:
                raise unknown(argument, name, list(columns), f"the table {path!r}")
    if labels_column and label_columns:
        raise UserError(f"the table {path!r}: give labels_column, one column of names, or label_columns, one a class")
    targets, names = {}, {}
    if labels_column:
        targets["labels"], names["labels"] = _named(columns[labels_column], labels_column, separator, label_names, path)
    if label_columns:
        targets["labels"] = np.stack([_truths(columns[name], name, path) for name in label_columns], 1)
        names["labels"] = label_names or tuple(label_columns)
        if len(names["labels"]) != len(label_columns):
            raise UserError(f"the table {path!r} has {len(label_columns)} label_columns, but {len(label_names)} "
                            f"label_names; give one for each")
    if target_columns:
        targets["target"] = np.stack([_reals(columns[name], name, path) for name in target_columns], 1)
        names["target"] = tuple(target_columns)
    return targets, names


def _named(cells: Sequence[Any], column: str, separator: str, names: tuple[str, ...],
           path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """int32 [n, K] of 0 and 1 from names joined by `separator`, and the K names."""
    if not separator:
        raise UserError(f"the table {path!r}: separator='' separates no names; give one, such as ';'")
    found = [[name.strip() for name in str(cell or "").split(separator) if name.strip()] for cell in cells]
    names = names or tuple(sorted({name for row in found for name in row}))
    if not names:
        raise UserError(f"the table {path!r} names no class in its column {column!r}; fill it or give another column")
    places, labels = {name: place for place, name in enumerate(names)}, np.zeros((len(cells), len(names)), np.int32)
    for row, mine in enumerate(found):
        for name in mine:
            if name not in places:
                raise unknown("class", name, names, f"column {column!r}, data row {row + 1} of the table {path!r}")
            labels[row, places[name]] = 1
    return labels, names


def _truths(cells: Sequence[Any], column: str, path: str) -> np.ndarray:
    """int32 [n]: 1, 0 or -1."""
    for row, cell in enumerate(cells):
        if str(cell) not in TRUTHS:
            raise UserError(f"the table {path!r} has {cell!r} in column {column!r}, data row {row + 1}; a column of a "
                            f"class holds 1, 0 and (not known) -1 or nothing")
    return np.array([TRUTHS[str(cell)] for cell in cells], np.int32)


def _reals(cells: Sequence[Any], column: str, path: str) -> np.ndarray:
    """float32 [n]."""
    for row, cell in enumerate(cells):
        if isinstance(cell, str) or cell is None or not np.isfinite(cell):
            raise UserError(f"the table {path!r} has {cell!r} in column {column!r}, data row {row + 1}; a target is a "
                            f"number")
    return np.array(cells, np.float32)


def read_table(file: Path) -> dict[str, list[Any]]:
    """The columns of a CSV, TSV or Parquet file, which has a row."""
    import pyarrow.csv
    import pyarrow.parquet

    if not file.is_file():
        raise UserError(f"the table {str(file)!r} does not exist; correct `path`")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            table = pyarrow.parquet.read_table(file)
        else:
            parts = pyarrow.csv.ParseOptions(delimiter="\t" if file.suffix.lower() == ".tsv" else ",",
                                             newlines_in_values=True)
            table = pyarrow.csv.read_csv(file, parse_options=parts)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"the table {str(file)!r} is neither CSV nor Parquet ({str(error).splitlines()[0]}); "
                        "mend it") from error
    if table.num_rows == 0:
        raise UserError(f"the table {str(file)!r} holds no row; give one row per example")
    return {name: table.column(name).to_pylist() for name in table.column_names}


def no_gaps(columns: Columns, wanted: Sequence[str | None], path: str) -> None:
    """Raises UserError for an empty cell of these columns, if they are there."""
    for name in wanted:
        for row, item in enumerate(columns.get(name or "", [])):
            if item is None or item == "":
                raise UserError(f"the table {path!r} has no {name!r} in its data row {row + 1}; fill or remove the row")


def split_rows(columns: Columns, split_column: str, count: int) -> dict[str, np.ndarray]:
    """Split -> its rows, in the order of their first appearance; all are 'train' where there is no such column."""
    groups = np.array([str(item) for item in columns.get(split_column, ["train"] * count)])
    return {split: np.flatnonzero(groups == split) for split in dict.fromkeys(groups.tolist())}


def number_labels(values: Sequence[Any]) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct values, sorted, and int32 [n] their numbers."""
    texts = [str(value) for value in values]
    distinct = set(texts)
    numeric = all(text.lstrip("-").isdigit() for text in distinct)
    names = sorted(distinct, key=int) if numeric else sorted(distinct)
    number = {name: place for place, name in enumerate(names)}
    return tuple(names), np.array([number[text] for text in texts], np.int32)
