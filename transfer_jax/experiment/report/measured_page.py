"""Pages of docs/ with a measured part: sections that a script writes from finished runs, between two marks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transfer_jax.core.errors import UserError

BEGIN, END = "<!-- measured -->\n", "<!-- end of measured -->\n"


def measured_sections(text: str) -> dict[str, str]:
    """Name of a run -> its section, of a page's text."""
    old = text.partition(BEGIN)[2].partition(END)[0]
    return dict(re.findall(r"<!-- run (\w+) -->\n(.*?)(?=<!-- run |\Z)", old, flags=re.S))


def with_sections(text: str, sections: Mapping[str, str]) -> str:
    """The page's text with these sections between the marks, in their order.

    Raises:
      UserError: if the page lacks the marks.
    """
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise UserError(f"the page has no measured part; write the lines {BEGIN.strip()} and {END.strip()} into it")
    parts = "".join(f"<!-- run {name} -->\n{section.rstrip()}\n\n" for name, section in sections.items())
    return before + BEGIN + parts + END + after
