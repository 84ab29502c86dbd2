"""What all commands share: `--config.path=value` overrides, one-sentence errors, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from transfer_jax.core.errors import UserError, nearest
from transfer_jax.core.processes import Membership
from transfer_jax.training.interruption import Interrupted

if TYPE_CHECKING:
    from transfer_jax.experiment.probing import Source

PREFIX = "--config."


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the options in one sentence, like every other fault of the user's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the option that every command has."""
    result = Parser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return result


def parse(options: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parsed options, and the `path=value` overrides in their order."""
    overrides, rest = [], []
    waiting = iter(arguments)
    for argument in waiting:
        if not argument.startswith(PREFIX):
            rest.append(argument)
            continue
        override = argument.removeprefix(PREFIX)
        if "=" not in override:
            value = next(waiting, None)
            if value is None:
                raise UserError(f"{argument} has no value; write {argument}=VALUE")
            override = f"{override}={value}"
        overrides.append(override)
    found, strangers = options.parse_known_args(rest)
    if strangers:
        known = [flag for action in options._actions for flag in action.option_strings]
        close = nearest(strangers[0].split("=")[0], known, 1)
        raise UserError(f"unknown option {strangers[0]!r}" + (f"; did you mean {close[0]}?" if close else
                        f"; there are: {', '.join(known)}"))
    return found, overrides


def add_model(options: argparse.ArgumentParser) -> None:
    """Options that name a model."""
    options.add_argument("--config", help="FILE.py, optionally with :key=value,...: its model before any training")
    options.add_argument("--workdir", help="folder of a run: its trained model")
    options.add_argument("--stage", help="the result of this stage of the run (default: the exported one)")
    options.add_argument("--best", action="store_true", help="the stage's best parameters instead of its last")
    options.add_argument("--model_seed", type=int, help="the model and splits of this seed (default: the first)")


def add_taps(options: argparse.ArgumentParser) -> None:
    """Options that choose features."""
    options.add_argument("--tap", nargs="+", default=["pooled"],
                         help="taps, side by side (python -m transfer_jax.models lists them); heads/NAME for outputs")
    options.add_argument("--pool", default="mean", help="how maps and tokens become vectors: mean, max, cls or none")


def add_processes(options: argparse.ArgumentParser) -> None:
    """Options that make this process one of several."""
    options.add_argument("--distributed", action="store_true",
                         help="one of several processes, as Slurm, a TPU pod, GKE or Open MPI says")
    options.add_argument("--coordinator", help="HOST:PORT of process 0, which listens at that address")
    options.add_argument("--processes", type=int, help="how many there are")
    options.add_argument("--process", type=int, help="the number of this one, from 0")


def membership_of(given: argparse.Namespace) -> Membership | None:
    """What the options of `add_processes` say; None for a process of its own."""
    membership = Membership(given.coordinator, given.processes, given.process)
    return membership if given.distributed or given.coordinator is not None else None


def source_of(given: argparse.Namespace, overrides: Sequence[str]) -> Source:
    """The model that the options of `add_model` name."""
    from transfer_jax.experiment.probing import Source

    return Source(given.config, overrides, Path(given.workdir) if given.workdir else None, given.stage,
                  "best" if given.best else "last", given.model_seed)


def output(text: str | None, flag: str = "--out", folder: bool = False) -> Path | None:
    """Where a result goes; asked before the work is done that would be lost. `folder`: it may be one."""
    if text is None:
        return None
    path = Path(text)
    there = next(place for place in path.absolute().parents if place.exists())  # the folders below it will be made
    if not there.is_dir() or not os.access(there, os.W_OK) or (path.is_dir() and not folder):
        raise UserError(f"{flag} {text}: no file can be written there; name another")
    return path


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a command and ends the process: 0 done, 2 a user error in one sentence, 130 Ctrl-C."""
    arguments = sys.argv[1:]
    try:
        sys.exit(main(arguments) or 0)
    except Interrupted as stop:
        print(f"stopped by {stop}; everything is saved, the same command continues", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("stopped at once; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        if "--debug" in arguments:
            raise
        for one in told(error):
            print(f"error: {one}", file=sys.stderr)
        sys.exit(2)


def told(error: UserError) -> list[BaseException]:
    """The error, last, and those that were on their way when it came, which it does not replace."""
    found: list[BaseException] = [error]
    while isinstance(found[0].__context__, UserError) and not found[0].__suppress_context__:
        found.insert(0, found[0].__context__)
    return found
