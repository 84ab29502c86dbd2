"""Files of word vectors: GloVe's text, and the text and the binary form of word2vec (and fastText's .vec)."""

from __future__ import annotations

import collections
import gzip
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.tensor_file import damaged

SUFFIXES = (".txt", ".vec", ".bin", ".gz")  # of the files of a folder
HEADER = re.compile(rb"(\d+) (\d+)\s*\r?\n")
FIRST_LINES = 100  # that tell how long vectors are
LONGEST_WORD = 2**16  # bytes


class WordVectors(NamedTuple):
    """vectors: float32 [width] of each word that was wanted. skipped: lines that are no word with `width` numbers, or
    no text in UTF-8; files that were cut somewhere have such ones."""

    vectors: dict[str, np.ndarray]
    width: int
    skipped: int


def read_word_vectors(path: str | Path, wanted: Collection[str] | None = None) -> WordVectors:
    """The vectors of the `wanted` words (None: of all) of a file, plain or in gzip, or of all files of a folder.

    Of words that occur twice the first counts. Only what is wanted is kept in memory.

    Raises:
        UserError: the path is missing, the file is no file of word vectors, or vectors have different lengths.
    """
    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise UserError(f"the folder {str(path)!r} holds no file of word vectors ({', '.join(SUFFIXES)}); give another")
    vectors: dict[str, np.ndarray] = {}
    width, skipped = 0, 0
    for file in files:
        found = _read_file(file, wanted)
        if width and found.width != width:
            raise UserError(f"the vectors of {str(file)!r} have {found.width} numbers, those of {str(files[0])!r} "
                            f"{width}; give one of the two")
        width, skipped = found.width, skipped + found.skipped
        vectors = {**found.vectors, **vectors}
    return WordVectors(vectors, width, skipped)


def _read_file(path: Path, wanted: Collection[str] | None) -> WordVectors:
    try:
        with path.open("rb") as raw:
            file = io.BufferedReader(gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw)
            header = HEADER.match(file.peek(64)[:64])
            if header is not None and _is_binary(file, header):
                return _read_binary(file, str(path), wanted)
            return _read_text(file, str(path), header, wanted)
    except (OSError, EOFError) as error:
        raise UserError(f"the word vectors {str(path)!r} cannot be read ({error}); check the path") from error


def _is_binary(file: io.BufferedReader, header: re.Match) -> bool:
    """Whether what follows the header's first word are bytes of numbers: digits would be text."""
    start = file.peek(io.DEFAULT_BUFFER_SIZE)[header.end():]
    word, _, rest = start.partition(b" ")
    return b"\n" not in word and not re.fullmatch(rb"[-+\d.eE \r\n]+", rest[:4 * int(header[2])].split(b"\n")[0][:64])


def _read_binary(file: BinaryIO, where: str, wanted: Collection[str] | None) -> WordVectors:
    count, width = map(int, file.readline().split())
    vectors: dict[str, np.ndarray] = {}
    skipped = 0
    for number in range(count):
        word, values = _word_of(file), file.read(4 * width)
        if len(values) != 4 * width:
            raise damaged(where, f"it ends in its word {number + 1} of {count}")
        try:
            name = word.lstrip(b"\n").decode()
        except UnicodeDecodeError:
            skipped += 1
            continue
        if wanted is None or name in wanted:
            vectors.setdefault(name, np.frombuffer(values, "<f4").astype(np.float32))
    return WordVectors(vectors, width, skipped)


def _word_of(file: BinaryIO) -> bytes:
    """The bytes up to a blank, which is taken, too."""
    found = bytearray()
    while (byte := file.read(1)) not in (b" ", b"") and len(found) < LONGEST_WORD:
        found += byte
    return bytes(found)


def _read_text(file: io.BufferedReader, where: str, header: re.Match | None,
               wanted: Collection[str] | None) -> WordVectors:
    lines = iter(file)
    first = [line for _, line in zip(range(FIRST_LINES), lines, strict=False)]
    if header is not None:
        width, first = int(header[2]), first[1:]
    else:
        lengths = collections.Counter(len(line.split()) - 1 for line in first)
        width = max(lengths, key=lengths.__getitem__, default=0)
    vectors: dict[str, np.ndarray] = {}
    good = skipped = 0
    for name, values in _rows(first, lines, width):
        if name is None:
            skipped += 1
            continue
        good += 1
        if wanted is not None and name not in wanted:
            continue
        try:
            vectors.setdefault(name, np.array(values, np.float32))
        except ValueError:
            good, skipped = good - 1, skipped + 1
    if width < 1 or skipped > good:
        raise damaged(where, f"{skipped} of its {good + skipped} lines are no word with {max(width, 1)} numbers")
    return WordVectors(vectors, width, skipped)


def _rows(first: list[bytes], rest: Iterator[bytes], width: int) -> Iterator[tuple[str | None, list[bytes]]]:
    """(word, its numbers as text) of every line that is not empty; the word is None where it is none. A word may hold
    blanks."""
    for lines in (first, rest):
        for line in lines:
            name, *values = line.rstrip().rsplit(b" ", width) if width > 0 else [b""]
            if not name and not values:
                continue
            try:
                yield (name.decode() if len(values) == width and name else None), values
            except UnicodeDecodeError:
                yield None, values
