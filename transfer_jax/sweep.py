"""Runs what a config's `get_sweep()` yields: `python -m transfer_jax.sweep --config FILE.py[:args] --workdir DIR`.

Each run has its own folder below DIR. The same command again skips finished runs and continues broken ones; a failing
run does not stop the others. At the end all finished runs are merged into one report in DIR.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--config", required=True, help="FILE.py, optionally with :key=value,...")
    options.add_argument("--workdir", required=True, help="folder of the sweep")
    given, overrides = command_line.parse(options, arguments)
    from transfer_jax.experiment.sweeping import run_sweep

    return run_sweep(given.config, Path(given.workdir), overrides)


if __name__ == "__main__":
    command_line.run(main)
