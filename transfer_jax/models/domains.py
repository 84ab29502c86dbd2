"""What belongs to a domain: BatchNorm statistics of its own, and the domain whose batch a network is reading, for
which head.

Statistics of several domains lie in one tree: those of the main domain where they always are, so that a model which
knows of no domains runs with them, the others below `domains/<domain>`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

KEY = "domains"
_reading: ContextVar[tuple[str | None, str | None]] = ContextVar("domain of the batch, head", default=(None, None))


@contextlib.contextmanager
def reading(domain: str | None, head: str | None = None) -> Iterator[None]:
    """A context in which networks are traced for a batch of this domain, to be answered by this head."""
    token = _reading.set((domain, head))
    try:
        yield
    finally:
        _reading.reset(token)


def current_domain() -> str | None:
    """The domain of the batch that is being read; None where nobody said."""
    return _reading.get()[0]


def current_head() -> str | None:
    """The head for which a network runs; None where nobody said."""
    return _reading.get()[1]


def main_statistics(batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of the main domain alone."""
    return {part: tree for part, tree in batch_stats.items() if part != KEY}


def statistics_of(batch_stats: Mapping[str, Any], domain: str | None) -> dict[str, Any]:
    """The statistics of a domain; those of the main one for a domain without its own."""
    return batch_stats.get(KEY, {}).get(domain) or main_statistics(batch_stats)


def with_domains(batch_stats: Mapping[str, Any], domains: tuple[str, ...]) -> dict[str, Any]:
    """The statistics with an entry for each of `domains`: the one they have, or a copy of the main one."""
    return main_statistics(batch_stats) | {KEY: {domain: statistics_of(batch_stats, domain) for domain in domains}}


def moved_statistics(moved: Mapping[str, Any], domain: str | None) -> dict[str, Any]:
    """Moved statistics of a domain at their place in the tree; `domain` None: the main one."""
    return dict(moved) if domain is None or not moved else {KEY: {domain: dict(moved)}}
