"""The one exception that a user may see, and the spelling help that goes into its message."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence


class UserError(Exception):
    """Something the user can mend: bad config, bad data, bad path.

    The message is one clear sentence that says what is wrong, where, and what to do. The command line prints it
    to stderr without a traceback and exits with code 2 (`--debug` shows the traceback).
    """


def all_of(calls: Sequence[Callable[[], object]]) -> None:
    """Makes every call, also behind one that fails; an error has those before it as its context."""
    if calls:
        try:
            calls[0]()
        finally:
            all_of(calls[1:])


def nearest(name: str, options: Iterable[str], count: int = 3) -> list[str]:
    """The `count` options spelt most like `name`, best first; possibly none."""
    return difflib.get_close_matches(name, list(options), n=count, cutoff=0.5)


def unknown(what: str, name: str, options: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not among `options`: names the place and the nearest valid spelling."""
    options = sorted(options)
    close = nearest(name, options, 1)
    place = f" in {where}" if where else ""
    hint = f"did you mean {close[0]!r}?" if close else "valid: " + (", ".join(options) or "none") + "."
    return UserError(f"unknown {what} {name!r}{place}; {hint}")
