"""Texts -> numbers of tokens, by the `tokenizer.json` that lies beside published weights."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Texts -> the input of a text backbone, padded on the right.

    rules: a `tokenizers.Tokenizer`, without truncation and padding of its own.
    longest: texts are cut to so many tokens, special ones included.
    padding_token: stands behind the end of shorter texts.
    """

    rules: Any
    longest: int
    padding_token: int = 0

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None,
                 length: int | None = None) -> dict[str, np.ndarray]:
        """`tokens` int32, `mask` bool and `types` int32, each [texts, T].

        Args:
            pairs: a second sentence for each text.
            length: T, the same for every call (a program is compiled once); None: of the longest text given.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f"{len(texts)} texts and {len(pairs)} second sentences were given; give one for each text")
        given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        found = self.rules.encode_batch(given)
        needed = max((len(text.ids) for text in found), default=0)
        length = needed if length is None else length
        if needed > length:
            raise UserError(f"a text has {needed} tokens, more than the length of {length} asked for; read the "
                            f"tokenizer with longest={length}")
        filled = {"tokens": np.full((len(found), length), self.padding_token, np.int32),
                  "mask": np.zeros((len(found), length), bool), "types": np.zeros((len(found), length), np.int32)}
        for row, text in enumerate(found):
            for name, values in (("tokens", text.ids), ("mask", text.attention_mask), ("types", text.type_ids)):
                filled[name][row, :len(values)] = values
        return filled


def read_tokenizer(folder: Path, longest: int | None = None) -> Tokenizer:
    """The tokenizer in a folder of transformers or sentence-transformers.

    Args:
        folder: holds `tokenizer.json`; `tokenizer_config.json`, `config.json` and `sentence_bert_config.json` tell the
            padding token and the longest text, if they are there.
        longest: in tokens; None: what the folder tells.
    """
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError:
        raise UserError("reading texts needs the package tokenizers; install it (pip install tokenizers)") from None
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no tokenizer.json; give a folder of a text model")
    try:
        rules = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare exceptions
        raise UserError(f"{file} is no readable tokenizer ({error}); fetch it again") from None
    longest = longest or _longest(folder)
    rules.no_padding()
    rules.enable_truncation(longest)
    return Tokenizer(rules, longest, _padding_token(folder, rules))


def _longest(folder: Path) -> int:
    """Of the sentence encoder if it is one, else what its tokenizer and its table of positions allow."""
    sentence = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    if sentence:
        return int(sentence)
    config = _read(folder / "config.json")
    told = (_read(folder / "tokenizer_config.json").get("model_max_length"), config.get("max_position_embeddings"),
            config.get("n_positions"))
    limits = [int(limit) for limit in told if limit]
    if not limits:
        raise UserError(f"{folder} does not tell the longest text of its model; give it as 'longest'")
    return min(limits)


def _padding_token(folder: Path, rules: Any) -> int:
    """Its number; 0 where there is none, for the mask tells all the same."""
    token = _read(folder / "tokenizer_config.json").get("pad_token")
    name = token.get("content") if isinstance(token, dict) else token
    number = rules.token_to_id(name) if name else _read(folder / "config.json").get("pad_token_id")
    return int(number or 0)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no readable JSON ({error}); fetch it again") from None
    return found if isinstance(found, dict) else {}
