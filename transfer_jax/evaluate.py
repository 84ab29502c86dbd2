"""Re-scores a checkpoint of a run: `python -m transfer_jax.evaluate --workdir DIR [--stage S] [--step N | --best]`.

Every stream that the stage evaluates is scored with every metric of its task, and by the validators of the stage; the
table has one column a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--workdir", required=True, help="folder of the run")
    options.add_argument("--stage", help="stage of the run (default: the one that became model/)")
    options.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    options.add_argument("--best", action="store_true", help="the best parameters that the stage kept")
    options.add_argument("--json", help="also write the scores to this file")
    given, _ = command_line.parse(options, arguments)
    out = command_line.output(given.json, "--json")
    from transfer_jax.experiment.rescoring import rescore

    rescore(Path(given.workdir), given.stage, given.step, "best" if given.best else "last", out)
    return 0


if __name__ == "__main__":
    command_line.run(main)
