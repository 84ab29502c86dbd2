"""Tables of text cells, and their three forms: terminal, Markdown, HTML."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.text import Text

from transfer_jax.training.progress import output_console, print_table


@dataclasses.dataclass
class Table:
    """Rows of text under named columns; `bold` holds (row, column) positions; `notes` are printed below.

    A line feed in a cell starts its second, smaller line. `labels` is the number of leading columns that name the
    row; `folded` tables start closed in HTML.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    bold: Collection[tuple[int, int]] = ()
    notes: Sequence[str] = ()
    labels: int = 1
    folded: bool = False

    def width(self) -> int:
        """Columns of a terminal that the table needs if only the names of rows are wrapped."""
        texts = [self.columns, *self.rows]
        widths = [2 + max(len(line.replace(" ± ", "±")) for row in texts for line in row[i].split("\n"))
                  for i in range(len(self.columns))]
        return sum(min(width, 14) if i < self.labels else width for i, width in enumerate(widths))

    def without(self, column: int) -> Table:
        """The table less one column."""
        drop = [[*row[:column], *row[column + 1:]] for row in (self.columns, *self.rows)]
        bold = {(i, j - (j > column)) for i, j in self.bold if j != column}
        return dataclasses.replace(self, columns=drop[0], rows=drop[1:], bold=bold)


def print_to_terminal(table: Table, console: Console | None = None) -> None:
    """Prints the table and its notes (default: to stdout)."""
    console = console or output_console()
    rows = [[Text(cell.replace(" ± ", "±"), style="bold" if (i, j) in table.bold else "") for j, cell in enumerate(row)]
            for i, row in enumerate(table.rows)]
    print_table(table.columns, rows, console, table.title, table.labels)
    for note in table.notes:
        console.print(Text(note))


def to_markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown, with its title above and its notes below."""
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rows = [[f"**{escape_markdown(cell)}**" if (i, j) in table.bold else escape_markdown(cell)
             for j, cell in enumerate(row)] for i, row in enumerate(table.rows)]
    rule = ["---" if i < table.labels else "---:" for i in range(len(table.columns))]
    head = [f"**{escape_markdown(table.title)}**", ""] if table.title else []
    notes = [text for note in table.notes for text in ("", escape_markdown(note))]
    columns = [escape_markdown(name) for name in table.columns]
    return "\n".join([*head, line(columns), line(rule), *map(line, rows), *notes])


def to_html(table: Table) -> str:
    """The table as an HTML fragment that scrolls sideways on a narrow screen."""
    def cell(tag: str, text: str, column: int, attributes: str = "") -> str:
        kind = ' class="label"' if column < table.labels else ""
        first, *more = html.escape(text).split("\n")
        return f"<{tag}{kind}{attributes}>{first}{''.join(f'<small>{line}</small>' for line in more)}</{tag}>"

    head = "".join(cell("th", name, i, ' scope="col"') for i, name in enumerate(table.columns))
    body = "\n".join(
        "<tr>" + "".join(cell("td", text, j).replace("<td", '<td data-best="1"', 1) if (i, j) in table.bold
                         else cell("td", text, j) for j, text in enumerate(row)) + "</tr>"
        for i, row in enumerate(table.rows))
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    grid = f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>{notes}'
    title = html.escape(table.title)
    if table.folded:
        return f"<details><summary>{title}</summary>{grid}</details>"
    return (f"<h3>{title}</h3>" if title else "") + grid


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line; a line feed becomes a break."""
    for mark in "\\`*_|<>[]":
        text = text.replace(mark, "\\" + mark)
    return "<br>".join(" ".join(line.split()) for line in text.split("\n"))
