"""What the originals say about the seeded networks, in small files, so that every test run can compare with them.

    python -m tests.parity.golden [--missing] [parts of ids ...]

writes `golden/outputs.json` (logits and tap averages of the smallest member of each family and layout) and
`golden/signatures.json` (names and shapes of the tensors of every case). Needs torch, torchvision, timm and
transformers; the same versions give the same numbers. `--missing` makes only what is not there yet.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.cases import CASES
from tests.parity.harness import Case, Original, signature
from transfer_jax.pretrained.conversion import find_layout, matches, to_foreign

FOLDER = Path(__file__).parent / "golden"
OUTPUTS, SIGNATURES = FOLDER / "outputs.json", FOLDER / "signatures.json"
CLASSES_KEPT = 16


def summarize(taps: dict[str, Any], logits: Any) -> dict[str, Any]:
    """Logits of both examples, and mean and mean magnitude of every tap."""
    return {"logits": np.asarray(logits, np.float64).reshape(len(logits), -1)[:, :CLASSES_KEPT].tolist(),
            "taps": {name: [float(np.mean(np.float64(value))), float(np.abs(np.float64(value)).mean())]
                     for name, value in taps.items()}}


def make(case: Case) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(outputs of the original if the case is a smallest one, signature of its own tensors)."""
    original = Original(case, to_foreign(case.leaves(), case.module, case.layout))
    outputs = summarize(*original.evaluate(case.draw_inputs())) if case.smallest else None
    return outputs, signature(learned(case, original.tensors()))


def learned(case: Case, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors that carry something to learn: without counters and index buffers."""
    ignored = find_layout(case.module, case.layout).ignore
    return {name: tensor for name, tensor in tensors.items() if not matches(ignored, name)}


def read(path: Path) -> dict[str, Any]:
    """The JSON file, or nothing yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def main(arguments: list[str]) -> None:
    """Makes the entries of the chosen cases anew, smallest first, and drops those of cases that are no more."""
    missing, parts = "--missing" in arguments, [argument for argument in arguments if argument != "--missing"]
    FOLDER.mkdir(exist_ok=True)
    for name, case in sorted(CASES.items(), key=lambda item: not item[1].smallest):
        known = name in read(SIGNATURES) and (name in read(OUTPUTS) or not case.smallest)
        if (parts and not any(part in name for part in parts)) or (missing and known):
            continue
        outputs, found = make(case)
        update(OUTPUTS, {name: outputs} if outputs else {}, [name for name, case in CASES.items() if case.smallest])
        update(SIGNATURES, {name: found}, CASES)
        print(name, found["numbers"], flush=True)


def update(path: Path, made: Mapping[str, Any], kept: Collection[str]) -> None:
    """Puts what was made into the file, and takes out what is no longer `kept`."""
    found = {name: value for name, value in (read(path) | made).items() if name in kept}
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
