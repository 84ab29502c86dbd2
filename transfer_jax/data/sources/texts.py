"""The user's own texts: tables with a text and a label a row. Streams of them have no image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.data import words
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.sources.tables import no_gaps, number_labels, read_table, split_rows

SHOWN = 60  # letters of a text in its name


class Texts(Dataset):
    """`tokens` int32 [length], the numbers of a text's words (0: none, 1: not in `words`), and `label`."""

    def __init__(self, texts: Sequence[str], labels: np.ndarray | None, class_names: Sequence[str],
                 vocabulary: tuple[str, ...], length: int, cut: str, origin: str):
        self._texts, self._length, self._cut, self._origin = list(texts), length, cut, origin
        self.words = vocabulary
        self._places = {word: number for number, word in enumerate(vocabulary)}
        self.labels = None if labels is None else np.asarray(labels, np.int32)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self._texts)

    def load(self, row: int) -> dict[str, Any]:
        tokens = words.numbers_of(words.cut(self._texts[row], self._cut), self._places, self._length)
        return {"tokens": tokens, **({} if self.labels is None else {"label": int(self.labels[row])})}

    def text_of(self, row: int) -> str:
        return self._texts[row]

    def name_of(self, row: int) -> str:
        return f"{self._origin}, row {row}: {self._texts[row][:SHOWN]!r}"

    def stamp(self, row: int) -> bytes:
        return self._texts[row].encode()


def texts_source(*, path: str, text_column: str = "text", label_column: str | None = "label",
                 split_column: str = "split", vocabulary: int = 8192, words_file: str | None = None,
                 cut: str = "words", length: int = 64) -> dict[str, Dataset]:
    """A CSV, TSV or Parquet file with one row per text: text, label (any text or number), optionally split.

    Classes are the labels of the whole table, sorted (as numbers when all are whole numbers). Without a split column
    all rows are the split 'train'. Batches have `tokens` int32 [length]: the first words, 0 behind the last. Words that
    have a number are the most frequent of the split 'train', `vocabulary` in all, or those of `words_file` (one a line;
    several data sets that share a backbone have to share it).

    Args:
        cut: 'words', or 'spaces' for texts that were cut into words before.
    """
    file = Path(path).expanduser()
    columns = read_table(file)
    for argument, name in (("text_column", text_column), ("label_column", label_column)):
        if name is not None and name not in columns:
            raise unknown(argument, name, list(columns), f"the table {path!r}")
    if length < 1:
        raise UserError(f"the table {path!r}: length={length} leaves no word; give 1 or more")
    no_gaps(columns, [text_column, label_column, split_column], path)
    texts = [str(text) for text in columns[text_column]]
    names, labels = number_labels(columns[label_column]) if label_column else ((), None)
    splits = split_rows(columns, split_column, len(texts))
    if words_file is not None:
        known = words.read_words(Path(words_file).expanduser())
    else:
        learnt = splits.get("train", next(iter(splits.values())))
        known = words.list_words((texts[row] for row in learnt), vocabulary, cut)
    return {split: Texts([texts[row] for row in rows], None if labels is None else labels[rows], names, known, length,
                         cut, f"{file.name} {split}") for split, rows in splits.items()}
