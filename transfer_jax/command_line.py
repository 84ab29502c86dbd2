"""What all commands share: `--config.path=value` overrides, one-sentence errors, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from transfer_jax.core.errors import UserError, nearest
from transfer_jax.training.interruption import Interrupted

PREFIX = "--config."


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the option that every command has."""
    result = argparse.ArgumentParser(description=description, allow_abbrev=False,
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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
