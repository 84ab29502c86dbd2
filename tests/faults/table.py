"""Puts the counts of a long run into docs/reliability.md: `python tests/faults/table.py COUNTS.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
LONG_KILLS = 200
BEGIN, END = "<!-- counts -->\n", "<!-- end of counts -->\n"


def table(found: dict[str, Any]) -> str:
    counts = found["counts"]
    whole = counts["kills"] >= LONG_KILLS
    rows = [("kills" if whole else f"kills, of {LONG_KILLS} planned: the run was interrupted", counts["kills"])]
    for kind, words in (("victim: ", "killed: "), ("phase: ", "while ")):
        rows += [(words + name.removeprefix(kind), count) for name, count in counts.items() if name.startswith(kind)]
    rows += [("survivors that ended with code 3 and named a process", counts.get("survivors ended", 0)),
             ("slowest of them after the kill, seconds", round(counts.get("slowest survivor, ms", 0) / 1000, 1)),
             ("runs that came to their end and were compared", counts.get("runs compared", 0)),
             ("of them bit-identical to a run that was never stopped", counts.get("runs bit-identical", 0)),
             ("failures of any check", len(found["failures"])),
             ("minutes", found["minutes"])]
    return "\n".join(["| counted | |", "|---|---|", *(f"| {name} | {count} |" for name, count in rows)]) + "\n"


def main(path: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + table(json.loads(Path(path).read_text())) + END + after)


if __name__ == "__main__":
    main(sys.argv[1])
