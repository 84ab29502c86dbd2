"""Runs an experiment: `python -m transfer_jax.train --config configs/X.py[:key=value,...] --workdir DIR`.

Any value can be set: `--config.stages.finetune.lr=1e-4`. The same command again continues a stopped run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line
from transfer_jax.core import processes
from transfer_jax.core.config import load_config
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.training import chips
from transfer_jax.training.interruption import StopRequest


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--config", required=True, help="FILE.py, optionally with :key=value,... for its get_config")
    options.add_argument("--workdir", help="folder of the run")
    options.add_argument("--plan", nargs="?", const="here", metavar="MACHINE",
                         help="print what each device would hold, here or on a machine such as h100-8, v5e-256 or 8, "
                              "and stop")
    options.add_argument("--allow_config_change", action="store_true", help="continue a run under another config")
    options.add_argument("--quiet", action="store_true", help="no progress, only the result")
    command_line.add_processes(options)
    given, overrides = command_line.parse(options, arguments)
    if given.plan is not None:
        show_plan(given.config, overrides, given.plan)
        return 0
    if given.workdir is None:
        raise UserError("--workdir is missing: the folder of the run (only --plan needs none)")
    train(given.config, Path(given.workdir), overrides, given.allow_config_change, given.quiet,
          command_line.membership_of(given))
    return 0


def train(config: str, workdir: Path, overrides: Sequence[str] = (), allow_config_change: bool = False,
          quiet: bool = False, membership: processes.Membership | None = None) -> None:
    """Runs the experiment of a config file in `workdir`, then writes and prints its report; with `membership` as one of
    several processes."""
    from transfer_jax.experiment.export import export_model
    from transfer_jax.experiment.runner import Runner  # heavy imports come after the arguments are known to be good
    from transfer_jax.experiment.spec import ExperimentSpec
    from transfer_jax.experiment.workdir import written

    spec = build(ExperimentSpec, load_config(config, overrides))
    # A stop may be asked for from here on, also while data are opened; a run that is through writes its report first.
    with processes.together(membership, spec.heartbeat_seconds), StopRequest() as stop, written(workdir):
        runner = Runner(spec, workdir, allow_config_change=allow_config_change, quiet=quiet)
        runner.run(stop)
        if processes.primary():
            export_model(runner.assembly, runner.workdir, workdir / "model")
            show_report([workdir], workdir)


def show_plan(config: str, overrides: Sequence[str], machine: str) -> None:
    """Prints what each device of the machine ('here' for this one) would hold."""
    from transfer_jax.experiment.planning import imitate, show_plans
    from transfer_jax.experiment.spec import ExperimentSpec

    chip, devices = (None, None) if machine == "here" else chips.machine(machine)
    if devices is not None:
        imitate(devices)
    show_plans(build(ExperimentSpec, load_config(config, overrides)), chip)


def show_report(workdirs: Sequence[Path], out: Path) -> None:
    """Writes the report of finished runs and prints its table and its place."""
    from transfer_jax.experiment.report import terminal_table, write_report

    paths = write_report(list(workdirs), out)
    terminal_table(list(workdirs))
    print(f"report: {paths.html}")


if __name__ == "__main__":
    command_line.run(main)
