"""Scanned receipts with the text of their lines: examples of two inputs, a picture and its words."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.decoding import decode_image

FIELDS = ("other", "company", "date", "address", "total")
PARTS = ("continues", "starts")
WORDS = {"line": 12, "page": 96}  # kept of an example
PAGES_KEPT = 8  # decoded, while the lines of a receipt are read one after the other
LEAST = 4  # letters and digits that a line needs to be part of a field


class Line(NamedTuple):
    """One line of text; box in pixels: left, top, right, bottom."""

    box: tuple[int, int, int, int]
    text: str


class Example(NamedTuple):
    """A window of a scan, its words, and its class."""

    receipt: str
    box: tuple[int, int, int, int] | None  # None: of the parts of the page number `label`
    words: tuple[str, ...]
    label: int


class Receipts(Dataset):
    """`image`, the window of the scan, `tokens` int32 [T], the words as numbers (0: none), and `label`."""

    def __init__(self, folder: Path, examples: Sequence[Example], class_names: tuple[str, ...], words: int,
                 vocabulary: int):
        self._folder, self._examples = folder, list(examples)
        self._words, self._vocabulary = words, vocabulary
        self.class_names = class_names
        self.labels = np.array([example.label for example in self._examples], np.int32)
        self._page = functools.lru_cache(PAGES_KEPT)(self._read_page)

    def __len__(self) -> int:
        return len(self._examples)

    def load(self, row: int) -> dict[str, Any]:
        example = self._examples[row]
        page = self._page(example.receipt)
        left, top, right, bottom = example.box or half(page.shape, example.label)
        window = page[max(top, 0):max(bottom, top + 1), max(left, 0):max(right, left + 1)]
        if not window.size:
            raise UserError(f"{self.name_of(row)}: its box {example.box} lies outside the scan of {page.shape[:2]}; "
                            f"mend or remove it")
        return {"image": window, "tokens": tokens(example.words, self._words, self._vocabulary), "label": example.label}

    def name_of(self, row: int) -> str:
        return f"receipt {self._examples[row].receipt}, {' '.join(self._examples[row].words)[:40]!r}"

    def _read_page(self, receipt: str) -> np.ndarray:
        return decode_image(self._folder / "img" / f"{receipt}.jpg")


def sroie_source(*, path: str = "", unit: str = "line", test_share: float = 0.3,
                 vocabulary: int = 4096) -> dict[str, Dataset]:
    """Receipts in the layout of SROIE (ICDAR 2019): img/ID.jpg, box/ID.csv (x1,y1,...,x4,y4,text), key/ID.json.

    Splits train and test have different receipts, `test_share` of them for testing, chosen by a hash of their names.
    Beside the image an example has its words as `tokens` (hashed, digits all alike; see `tokens`).

    Args:
        unit: 'line', the window of a line, whose class is the field of the receipt that it belongs to; or 'page', the
            upper or lower half of a scan: whether it starts a receipt or continues one.
    """
    folder = Path(path).expanduser()
    if unit not in WORDS:
        raise unknown("unit", unit, WORDS, "data of kind 'sroie'")
    if not 0 < test_share < 1 or vocabulary < 2:
        raise UserError(f"data of kind 'sroie': test_share={test_share} and vocabulary={vocabulary} do not fit; use a "
                        f"share between 0 and 1 and 2 or more numbers")
    receipts = sorted(file.stem for file in (folder / "key").glob("*.json")) if path else []
    if len(receipts) < 2:
        raise UserError(f"{path!r} holds no receipts in the layout of SROIE (img/, box/, key/); give its `path`")
    ranked = sorted(receipts, key=lambda receipt: hashlib.sha256(receipt.encode()).digest())
    held_out = set(ranked[:min(max(1, round(test_share * len(ranked))), len(ranked) - 1)])
    make, classes = (lines_of, FIELDS) if unit == "line" else (halves_of, PARTS)
    found = {receipt: make(receipt, read_lines(folder, receipt), read_fields(folder, receipt)) for receipt in receipts}
    return {split: Receipts(folder, [example for receipt in receipts if (receipt in held_out) == (split == "test")
                                     for example in found[receipt]], classes, WORDS[unit], vocabulary)
            for split in ("train", "test")}


def read_lines(folder: Path, receipt: str) -> list[Line]:
    """The lines of a receipt, in their order."""
    file = folder / "box" / f"{receipt}.csv"
    try:
        rows = file.read_text(encoding="utf-8", errors="replace").splitlines()
        found = []
        for row in filter(str.strip, rows):
            *corners, text = row.split(",", 8)
            if len(corners) != 8:
                raise ValueError(f"{row!r} has {len(corners)} numbers in front of its text")
            x, y = [int(value) for value in corners[0::2]], [int(value) for value in corners[1::2]]
            found.append(Line((min(x), min(y), max(x), max(y)), text.strip()))
        return found
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no list of lines x1,y1,...,x4,y4,text ({error}); mend or remove the "
                        f"receipt") from error


def read_fields(folder: Path, receipt: str) -> Mapping[str, str]:
    """company, date, address, total: text by field."""
    file = folder / "key" / f"{receipt}.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {field: str(found.get(field, "")) for field in FIELDS[1:]}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is no JSON object of fields ({error}); mend or remove the receipt") from error


def lines_of(receipt: str, lines: Sequence[Line], fields: Mapping[str, str]) -> list[Example]:
    """Each line with the field that it belongs to."""
    return [Example(receipt, line.box, tuple(line.text.split()), FIELDS.index(field_of(line.text, fields)))
            for line in lines]


def halves_of(receipt: str, lines: Sequence[Line], fields: Mapping[str, str]) -> list[Example]:
    """The upper half of the page, which starts the receipt, and the lower one."""
    del fields
    middle = (min(line.box[1] for line in lines) + max(line.box[3] for line in lines)) / 2 if lines else 0
    upper, lower = [], []
    for line in lines:
        (upper if (line.box[1] + line.box[3]) / 2 < middle else lower).extend(line.text.split())
    return [Example(receipt, None, tuple(upper), PARTS.index("starts")),
            Example(receipt, None, tuple(lower), PARTS.index("continues"))]


def half(shape: Sequence[int], label: int) -> tuple[int, int, int, int]:
    """Box of the upper half of a page for the class 'starts', of the lower one for 'continues'."""
    height, width = shape[:2]
    return (0, 0, width, height // 2) if PARTS[label] == "starts" else (0, height // 2, width, height)


def field_of(text: str, fields: Mapping[str, str]) -> str:
    """The field whose text the line is, or is a part of; 'other' if there is none.

    A line is a company or an address if one of the two, letters and digits alone, is a part of the other; a date or a
    total if it has that as one of its words.
    """
    plain = letters(text)
    for field in ("company", "address"):
        known = letters(fields[field])
        if len(plain) >= LEAST and known and (plain in known or known in plain):
            return field
    words = re.split(r"[\s:]+", text)
    return next((field for field in ("date", "total") if fields[field] and fields[field] in words), "other")


def letters(text: str) -> str:
    """Letters and digits of a text, in capitals."""
    return re.sub(r"[^A-Z0-9]", "", text.upper())


def tokens(words: Sequence[str], length: int, vocabulary: int) -> np.ndarray:
    """int32 [length]: a hash from 1 to vocabulary - 1 of each word, in small letters and with 0 for every digit, so
    that amounts and dates of one form are one word; 0 where there are no more."""
    found = np.zeros(length, np.int32)
    for place, word in enumerate(words[:length]):
        found[place] = 1 + zlib.crc32(re.sub(r"\d", "0", word.lower()).encode()) % (vocabulary - 1)
    return found
