"""The table of word vectors of a text backbone, out of files of word vectors."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.conversion import Leaves
from transfer_jax.pretrained.formats.word_vectors import read_word_vectors
from transfer_jax.pretrained.report import Entry, LoadReport

LAYOUT = "word_vectors"
TABLE = "word/embedding"  # how the path of a table of words ends
FRESH = 0.02  # deviation of fresh vectors, see `models.text.normal_init`


def from_word_vectors(path: Path, words: Sequence[str], shapes: Mapping[str, Any], source: str,
                      model: str) -> tuple[Leaves, LoadReport]:
    """The leaf [vocabulary, width] of the words, row by row, and the account of it; other leaves keep fresh values.

    Words without a vector start beside the mean of the vectors that were found, with the deviation of fresh layers, a
    function of the word alone; the numbers 0 (no word) and 1 (not known) get zeros and the mean.

    Args:
        words: what the numbers of tokens stand for, from 0 on, as the data tell it.
        shapes: path -> shape of the leaves of the backbone.

    Raises:
        UserError: no data with words feed the backbone, it has no table of words, or table and file do not agree.
    """
    if not words:
        raise UserError(f"{source}: the vectors are of words, but no stream of texts feeds the backbone; give it one "
                        f"whose data are of kind 'texts'")
    tables = [leaf for leaf in shapes if leaf == TABLE or leaf.endswith(f"/{TABLE}")]
    if len(tables) != 1:
        raise UserError(f"{source}: {model} has {len(tables) or 'no'} tables of words ({TABLE}); word vectors start a "
                        f"backbone that has one, such as word_average")
    rows, width = shapes[tables[0]].shape
    found = read_word_vectors(path, frozenset(words[2:]))
    if found.width != width:
        raise UserError(f"{source}: the vectors have {found.width} numbers, but those of {model} have {width}; set its "
                        f"width={found.width}")
    if not found.vectors:
        raise UserError(f"{source} has a vector for none of the {len(words) - 2} words of the data; is it of another "
                        f"language, or in capitals?")
    if len(words) > rows:
        raise UserError(f"{source}: the data number {len(words)} words, but {model} has room for {rows}; set its "
                        f"vocabulary={len(words)} or more")
    mean = np.stack(list(found.vectors.values())).mean(0)
    table = np.zeros((rows, width), np.float32)
    table[1] = mean
    for number, word in enumerate(words[2:], 2):
        table[number] = found.vectors[word] if word in found.vectors else _beside(mean, word)
    note = f"{len(found.vectors):,} of {len(words) - 2:,} words have a vector, the others start beside the mean"
    note += f"; {found.skipped} damaged lines passed over" if found.skipped else ""
    entries = [Entry("adapted", tables[0], "vectors", (rows, width), note)]
    entries += [Entry("new", leaf, None, tuple(shape.shape)) for leaf, shape in shapes.items() if leaf != tables[0]]
    return {tables[0]: table}, LoadReport(source, LAYOUT, model, tuple(entries))


def _beside(mean: np.ndarray, word: str) -> np.ndarray:
    """float32 [width]."""
    generator = np.random.default_rng(zlib.crc32(word.encode()))
    return (mean + FRESH * generator.standard_normal(len(mean))).astype(np.float32)
