"""Rebuilds the report of a run, or merges those of several.

`python -m transfer_jax.report --workdir DIR [DIR...] [--out DIR]`

The folder of a sweep stands for its finished runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line
from transfer_jax.train import show_report


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--workdir", required=True, nargs="+", help="folders of runs, or of sweeps")
    options.add_argument("--out", help="where the report goes (default: the first folder)")
    given, _ = command_line.parse(options, arguments)
    from transfer_jax.experiment.sweeping import runs_of

    folders = [Path(folder) for folder in given.workdir]
    runs = [run for folder in folders for run in runs_of(folder) or [folder]]
    show_report(runs, Path(given.out) if given.out else folders[0])
    return 0


if __name__ == "__main__":
    command_line.run(main)
