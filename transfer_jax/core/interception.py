"""Changing the taps of a network on their way: while edits are active, `walk` passes each tap through them.

Networks know nothing of it. It acts while a network is traced, so a compiled function has the edits that were active at
its first call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

Edit = Callable[[Any], Any]
_active: ContextVar[tuple[Mapping[str, Edit], ...]] = ContextVar("active edits of taps", default=())


@contextlib.contextmanager
def tap_edits(edits: Mapping[str, Edit]) -> Iterator[None]:
    """Inside, the tap of every name in `edits` becomes `edits[name](tap)`, after those of the contexts around."""
    token = _active.set((*_active.get(), edits))
    try:
        yield
    finally:
        _active.reset(token)


def edited(name: str, tap: Any) -> Any:
    """The tap as the active edits leave it."""
    for edits in _active.get():
        tap = edits[name](tap) if name in edits else tap
    return tap
