"""Texts as numbers of words: how a text is cut into words, and which words have a number."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from transfer_jax.core.errors import UserError, unknown

PADDING, UNKNOWN = "", "[unknown]"  # the first two of every list of words; their numbers are 0 and 1
RESERVED = (PADDING, UNKNOWN)


def _words_and_marks(text: str) -> list[str]:
    return re.findall(r"\w+(?:'\w+)?|[^\w\s]", text)


CUTS = {"words": _words_and_marks, "spaces": str.split}


def cut(text: str, how: str = "words") -> list[str]:
    """The words of a text in small letters; `how`: 'words' and marks of punctuation, or what stands between 'spaces'
    (of texts that were cut into words before)."""
    if how not in CUTS:
        raise unknown("cut", how, CUTS, "a source of texts")
    return CUTS[how](text.lower())


def list_words(texts: Iterable[str], most: int, how: str = "words") -> tuple[str, ...]:
    """`RESERVED`, then the most frequent words of the texts, `most` in all; of equally frequent ones the first seen."""
    if most <= len(RESERVED):
        raise UserError(f"a vocabulary of {most} has no room for words: two numbers are kept for no word and for one "
                        f"that is not known; give more")
    counts = collections.Counter(word for text in texts for word in cut(text, how))
    return (*RESERVED, *(word for word, _ in counts.most_common(most - len(RESERVED))))


def read_words(file: Path) -> tuple[str, ...]:
    """`RESERVED`, then the words of a file, one a line."""
    try:
        found = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list of words {str(file)!r} cannot be read ({error}); give a text file with one word a "
                        f"line") from error
    words = [word for word in found if word]
    repeated = [word for word, count in collections.Counter((*RESERVED, *words)).items() if count > 1]
    if repeated or not words:
        raise UserError(f"the list of words {str(file)!r} "
                        + (f"names {repeated[0]!r} twice; name each once" if repeated else "is empty; name some"))
    return (*RESERVED, *words)


def write_words(file: Path, words: Sequence[str]) -> None:
    """Writes a list that `read_words` reads; whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.write_text("\n".join(words[len(RESERVED):]) + "\n", encoding="utf-8")
    part.replace(file)


def numbers_of(words: Sequence[str], places: Mapping[str, int], length: int) -> np.ndarray:
    """int32 [length]: the numbers of the first words, 1 for one that is not known, 0 behind the last."""
    found = np.zeros(length, np.int32)
    for place, word in enumerate(words[:length]):
        found[place] = places.get(word, RESERVED.index(UNKNOWN))
    return found
