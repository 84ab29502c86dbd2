"""Runs proofs outside of pytest: python -m tests.parity.prove [ids or parts of ids ...]"""

from __future__ import annotations

import sys
import time

from tests.parity.cases import CASES
from tests.parity.harness import prove


def main(arguments: list[str]) -> int:
    """Prints one line of worst relative errors for each case; exit code 1 if one is over its tolerance."""
    failed = 0
    for name, case in CASES.items():
        if arguments and not any(argument in name for argument in arguments):
            continue
        start = time.perf_counter()
        proof = prove(case)
        failed += proof.worst > case.tolerance
        print(f"{name:42s} {proof.parameters:12,d} taps {proof.taps:.1e} logits {proof.logits:.1e} "
              f"train {proof.train:.1e} statistics {proof.statistics:.1e} gradients {proof.gradients:.1e} "
              f"{'OVER' if proof.worst > case.tolerance else 'ok'} ({time.perf_counter() - start:.0f} s)", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
