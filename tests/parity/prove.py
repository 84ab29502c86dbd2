"""Runs proofs outside of pytest: python -m tests.parity.prove [--record] [--missing] [ids or parts of ids ...]

`--record` keeps the errors in `golden/proofs.json`, from which `tests.parity.models_page` makes `docs/models.md`;
`--missing` leaves out what is recorded already.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import sys
import time
from typing import Any

from tests.parity.cases import CASES
from tests.parity.golden import FOLDER, read, update
from tests.parity.harness import Case, Proof, prove

PROOFS = FOLDER / "proofs.json"
PARTS = ("taps", "logits", "train", "statistics", "gradients")


def main(arguments: list[str]) -> int:
    """Prints one line of worst relative errors for each case; exit code 1 if one is over its tolerance."""
    flags = {argument for argument in arguments if argument.startswith("--")}
    parts = [argument for argument in arguments if argument not in flags]
    if unknown := flags - {"--record", "--missing"}:
        print(f"unknown option {min(unknown)}; see the module's docstring", file=sys.stderr)
        return 2
    failed = 0
    for name, case in CASES.items():
        if (parts and not any(part in name for part in parts)) or ("--missing" in flags and name in read(PROOFS)):
            continue
        start = time.perf_counter()
        proof = prove(case)
        failed += proof.worst > case.tolerance
        errors = " ".join(f"{part} {getattr(proof, part):.1e}" for part in PARTS)
        print(f"{name:42s} {proof.parameters:12,d} {errors} "
              f"{'OVER' if proof.worst > case.tolerance else 'ok'} ({time.perf_counter() - start:.0f} s)", flush=True)
        if "--record" in flags:
            update(PROOFS, {name: record(case, proof)}, CASES)
    return int(failed > 0)


def record(case: Case, proof: Proof) -> dict[str, Any]:
    """What is kept of a proof: its errors, and when and against what they were found."""
    original = {"keras": "keras", "transformers": "transformers", "timm": "timm", "torchvision": "torchvision"}
    package = original.get(case.layout.partition("_")[0], "torch")
    return {**{part: float(f"{getattr(proof, part):.2g}") for part in PARTS}, "parameters": proof.parameters,
            "tolerance": case.tolerance, "date": datetime.date.today().isoformat(),
            "against": f"{package} {importlib.metadata.version(package).partition('+')[0]}",
            "jax": importlib.metadata.version("jax")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
