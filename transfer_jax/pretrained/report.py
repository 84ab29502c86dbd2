"""The account of a conversion: what became of every leaf of ours and every tensor of theirs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from transfer_jax.core.errors import UserError

MEANING = {
    "loaded": "taken over, every number unchanged",
    "adapted": "taken over with a named adaptation",
    "new": "not in the source, allowed: keeps its fresh values",
    "left out": "in the source, not wanted here: another head, or behind the cut",
    "ignored": "counters, index buffers and old heads: nothing to learn",
    "missing": "not in the source",
    "unused": "in the source, but no place for it",
    "mismatch": "another shape than ours",
}
FAULTS = ("missing", "unused", "mismatch")
SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: our path and their name (either may be absent), shapes, and what was done."""

    status: str
    ours: str | None
    theirs: str | None
    shape: tuple[int, ...]
    note: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Entries of one conversion, and between what it was."""

    source: str
    layout: str
    model: str
    entries: tuple[Entry, ...]

    def of(self, status: str) -> list[Entry]:
        """Entries with this status, in order."""
        return [entry for entry in self.entries if entry.status == status]

    @property
    def faults(self) -> list[Entry]:
        """What no exception explains."""
        return [entry for entry in self.entries if entry.status in FAULTS]

    def check(self) -> LoadReport:
        """Itself, if everything is explained; else the `LoadError` that names the first faults."""
        if self.faults:
            raise LoadError(self)
        return self

    def table(self) -> Table:
        """Counts for each status, then every tensor that was not simply loaded (the first dozen of each status)."""
        table = Table(title=f"{self.source} ({self.layout}) -> {self.model}", title_justify="left")
        for name in ("status", "tensors", "numbers", "what"):
            table.add_column(name, justify="right" if name in ("tensors", "numbers") else "left", overflow="fold")
        for status, meaning in MEANING.items():
            found = self.of(status)
            if not found:
                continue
            style = "bold red" if status in FAULTS else None
            table.add_row(status, str(len(found)), f"{sum(e.size for e in found):,}", meaning, style=style)
            for entry in found[:SHOWN] if status not in ("loaded", "ignored") else []:
                table.add_row("", "", "", f"  {_line(entry)}", style="dim" if status not in FAULTS else None)
            if status not in ("loaded", "ignored") and len(found) > SHOWN:
                table.add_row("", "", "", f"  ... and {len(found) - SHOWN} more", style="dim")
        return table

    def summary(self) -> dict[str, Any]:
        """Counts by status and the entries that were not simply loaded, for JSON files."""
        counts = {status: len(self.of(status)) for status in MEANING if self.of(status)}
        rest = [dataclasses.asdict(entry) for entry in self.entries if entry.status not in ("loaded", "ignored")]
        return {"source": self.source, "layout": self.layout, "model": self.model, "tensors": counts,
                "not_loaded": rest}


class LoadError(UserError):
    """A conversion that leaves something unexplained; carries its report."""

    def __init__(self, report: LoadReport) -> None:
        self.report = report
        parts = [f"{len(found)} {status} ({_names(found)})" for status in FAULTS if (found := report.of(status))]
        super().__init__(f"{report.source} does not fit {report.model} in the layout {report.layout!r}: "
                         f"{'; '.join(parts)}; name intended differences in allow_missing or allow_unused")


def _names(entries: Iterable[Entry]) -> str:
    entries = list(entries)
    shown = ", ".join(_line(entry) for entry in entries[:3])
    return shown + (", ..." if len(entries) > 3 else "")


def _line(entry: Entry) -> str:
    names = " <- ".join(name for name in (entry.ours, entry.theirs) if name)
    return f"{names} {list(entry.shape)}" + (f": {entry.note}" if entry.note else "")
