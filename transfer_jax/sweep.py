"""Runs what a config's `get_sweep()` yields: `python -m transfer_jax.sweep --config FILE.py[:args] --workdir DIR`.

Each run has its own folder below DIR. The same command again skips finished runs and continues broken ones; a failing
run does not stop the others. At the end all finished runs are merged into one report in DIR. `--executor slurm` makes
every run a job of its own, `--executor local --jobs 4` a process, four at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line
from transfer_jax.core.errors import UserError


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--config", required=True, help="FILE.py, optionally with :key=value,...")
    options.add_argument("--workdir", help="folder of the sweep")
    options.add_argument("--executor", choices=("here", "local", "slurm"), default="here",
                         help="here: one after the other in this terminal; local: several processes; slurm: jobs")
    options.add_argument("--jobs", type=int, help="how many runs at once (default: local 2, slurm all)")
    options.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE",
                         help="parameters of a job, for example partition=gpu gpus_per_node=1 time=240")
    options.add_argument("--only", type=int, metavar="NUMBER", help="only this run, from 0, without a report")
    options.add_argument("--list", action="store_true", help="print the runs and stop")
    given, overrides = command_line.parse(options, arguments)
    from transfer_jax.experiment import sweeping

    if given.list:
        sweeping.show_runs(given.config)
        return 0
    if given.workdir is None:
        raise UserError("--workdir is missing: the folder of the sweep (only --list needs none)")
    sweep = sweeping.Sweep(given.config, Path(given.workdir), tuple(overrides))
    if given.executor == "here" and (given.jobs is not None or given.slurm):
        raise UserError("--jobs and --slurm need --executor local or slurm; without it the runs follow one another")
    if given.only is not None:
        return sweep.run_only(given.only)
    if given.executor == "here":
        return sweep.run()
    if given.jobs is not None and given.jobs < 1:
        raise UserError(f"--jobs {given.jobs}: at least one run at a time")
    return sweep.submit(given.executor, given.jobs or (2 if given.executor == "local" else None), given.slurm)


if __name__ == "__main__":
    command_line.run(main)
