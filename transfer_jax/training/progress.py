"""What a user sees while training: bars with time left on a terminal, short lines in a log file, tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import rich.box
import rich.progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100  # columns when the output is a file or a pipe


class Progress:
    """Progress of an experiment: which stage of how many, how far, how fast, the current loss, the time left.

        with Progress(total_stages=3) as progress:
            progress.start_stage("fine-tuning", steps=1000)
            progress.advance(50, loss=0.31)
            progress.end_stage()

    On a terminal it draws bars; elsewhere (log files, CI) it prints a short line every `interval` seconds. Either way
    one line a stage remains when it has ended. Everything goes to stderr, so that stdout holds results alone.

    Args:
        total_stages: number of stages of the experiment.
        enabled: False prints nothing except `message`s.
        total_steps: sum of the steps of all stages, if known: then the time left of the whole run is shown as well.
        stage: number of stages already done by an earlier process.
        console: where to print (default: stderr).
        interval: seconds between two lines when there is no terminal.
        clock: seconds, monotonic (for tests).
    """

    def __init__(self, total_stages: int, enabled: bool = True, total_steps: int | None = None, stage: int = 0,
                 console: Console | None = None, interval: float = 10.0,
                 clock: Callable[[], float] = time.monotonic):
        self.console = console or output_console(sys.stderr)
        self._total_stages, self._total_steps, self._stage = total_stages, total_steps, stage
        self._enabled, self._interval, self._clock = enabled, interval, clock
        self._together = 1  # stages that run in parallel now
        self._bars = _bars(self.console) if enabled and self.console.is_terminal else None
        self._overall = None
        self._title, self._steps, self._done, self._values = "", 0, 0, ""
        self._pace = _Pace(clock(), 0)
        self._total_pace = _Pace(clock(), 0)
        self._total_done = 0
        self._printed = clock()

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
            if self._total_steps:
                self._overall = self._bars.add_task("[bold]all stages", total=self._total_steps, values="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start_stage(self, title: str, steps: int, done: int = 0, stages: int = 1) -> None:
        """Opens the next stage of `steps` updates, of which `done` were made by an earlier process; or the next
        `stages`, which run in parallel."""
        self._stage += stages
        self._together = stages
        self._title, self._steps, self._done, self._values = title, steps, done, ""
        self._pace = _Pace(self._clock(), done)
        self._printed = self._clock()
        self._skip(done)
        if self._bars is not None:
            self._task = self._bars.add_task(self._label(), total=steps, completed=done, values="compiling")

    def skip_stage(self, title: str, steps: int) -> None:
        """Counts a stage that an earlier process has finished."""
        self._stage += 1
        self._skip(steps)
        if self._enabled:
            self._print(f"stage {self._stage}/{self._total_stages} {title}: done before")

    def advance(self, n: int, **values: float) -> None:
        """Counts `n` more updates; `values` (loss=0.3, accuracy=0.9) are shown beside the bar."""
        if not self._enabled:
            return
        now = self._clock()
        self._done += n
        self._total_done += n
        self._pace.add(now, self._done)
        self._total_pace.add(now, self._total_done)
        self._values = "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        if self._bars is not None:
            self._bars.update(self._task, completed=self._done, values=self._values)
            if self._overall is not None:
                self._bars.update(self._overall, completed=self._total_done)
        elif now - self._printed >= self._interval:
            self._printed = now
            self._print(self.line())

    def end_stage(self) -> None:
        """Closes the stage and leaves one line about it."""
        if not self._enabled:
            return
        if self._bars is not None:
            self._bars.remove_task(self._task)
        seconds = self._pace.elapsed(self._clock())
        values = f"  {self._values}" if self._values else ""
        self._print(f"{self._label()}: {self._done} steps in {seconds:.1f} s{values}")

    def message(self, text: str) -> None:
        """Prints a line above the bars (also in quiet mode): warnings, where things were saved."""
        self._print(text)

    def line(self) -> str:
        """The state of the stage as one line of plain text."""
        percent = 100 * self._done // max(self._steps, 1)
        rate = self._pace.rate()
        parts = [self._label(), f"{percent}%", f"{self._done}/{self._steps}"]
        parts += [f"{rate:.3g} steps/s"] if rate else []
        parts += [self._values] if self._values else []
        parts += [f"{duration((self._steps - self._done) / rate)} left"] if rate else []
        total = self._total_pace.rate()
        if self._total_steps and total:
            parts.append(f"all: {duration((self._total_steps - self._total_done) / total)} left")
        return "  ".join(parts)

    def _print(self, text: str) -> None:
        # Never wrapped at a width: a line of a log is one line.
        self.console.print(Text(text), soft_wrap=True)

    def _skip(self, steps: int) -> None:
        self._total_done += steps
        self._total_pace = self._total_pace.shifted(steps)
        if self._bars is not None and self._overall is not None:
            self._bars.update(self._overall, completed=self._total_done)

    def _label(self) -> str:
        first = f"{self._stage - self._together + 1}-" if self._together > 1 else ""
        return f"stage {first}{self._stage}/{self._total_stages} {self._title}"


class _Pace:
    """Updates a second since the first `advance`, which holds the compilation and says nothing about the rest."""

    def __init__(self, start: float, done: int):
        self._start, self._first, self._last = start, None, (start, done)

    def add(self, now: float, done: int) -> None:
        self._last = (now, done)
        if self._first is None:
            self._first = self._last

    def rate(self) -> float | None:
        if self._first is None or self._last[0] <= self._first[0] or self._last[1] <= self._first[1]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    def elapsed(self, now: float) -> float:
        return now - self._start

    def shifted(self, steps: int) -> _Pace:
        """This pace with `steps` updates that cost no time here: they must not make it look faster."""
        if self._first is not None:
            self._first = (self._first[0], self._first[1] + steps)
        self._last = (self._last[0], self._last[1] + steps)
        return self


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = int(round(max(seconds, 0)))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def quantity(value: float, unit: str = "") -> str:
    """A count in three figures: 11_200_000 -> '11.2M', with `unit` 'B': '11.2 MB' (powers of 1000)."""
    prefix = ""
    for prefix in ("", "k", "M", "G", "T"):  # noqa: B007
        if abs(value) < 999.5 or prefix == "T":
            break
        value /= 1000
    digits = f"{value:.3g}" if prefix else f"{value:.6g}"
    return f"{digits} {prefix}{unit}" if unit else f"{digits}{prefix}"


def output_console(file: Any = None) -> Console:
    """A console for `file` (default stdout): as wide as the terminal, `PLAIN_WIDTH` columns if there is none."""
    file = file or sys.stdout
    terminal = hasattr(file, "isatty") and file.isatty()
    return Console(file=file, width=None if terminal else PLAIN_WIDTH, highlight=False, soft_wrap=False)


def print_groups(rows: Iterable[Mapping[str, Any]], console: Console | None = None, title: str | None = None) -> None:
    """Prints the table of parameter groups: what is trained, how, and what is frozen.

    `rows` as in `stages.json`: group, tensors, parameters, share (fraction of all parameters), lr, weight_decay,
    optimizer, optimizer_bytes, frozen.
    """
    console = console or output_console()
    columns = ("group", "tensors", "parameters", "share", "optimizer", "lr", "weight decay", "optimizer bytes")
    print_table(columns, [group_cells(row) for row in rows], console, title)


def group_cells(row: Mapping[str, Any]) -> list[str]:
    """The eight cells of one group, as `print_groups` shows them."""
    frozen = bool(row.get("frozen"))
    return [str(row["group"]), f"{row['tensors']:,}", f"{row['parameters']:,}", f"{100 * row['share']:.1f}%",
            "frozen" if frozen else _optimizer(row),
            "-" if frozen or row.get("lr") is None else f"{row['lr']:.4g}",
            "-" if frozen or row.get("weight_decay") is None else f"{row['weight_decay']:.4g}",
            quantity(row.get("optimizer_bytes") or 0, "B")]


def _optimizer(row: Mapping[str, Any]) -> str:
    start = f", from step {row['unfreeze_at']}" if row.get("unfreeze_at") else ""
    return f"{row.get('optimizer') or '-'}{start}"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], console: Console | None = None,
                title: str | None = None, labels: int = 1) -> None:
    """Prints text cells as a table: the first `labels` columns to the left, the others (numbers) to the right."""
    table = Table(title=Text(title) if title else None, title_justify="left", header_style="bold",
                  box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rows = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    console = console or output_console()
    # Numbers stay whole and long names wrap, as long as that leaves room for names.
    widths = [max(len(name), *(len(row[i]) for row in rows)) if rows else 0 for i, name in enumerate(columns)]
    room = sum(min(width, 12) + 2 for width in widths[:labels]) + sum(width + 2 for width in widths[labels:])
    whole = room <= console.width
    for i, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if i < labels else "right", overflow="fold",
                         no_wrap=whole and i >= labels)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _bars(console: Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(bar_width=24),
        rich.progress.TaskProgressColumn(show_speed=False), _Rate(), rich.progress.TextColumn("{task.fields[values]}"),
        rich.progress.TimeRemainingColumn(), rich.progress.TextColumn("left"), console=console, refresh_per_second=4,
        transient=True)


class _Rate(rich.progress.ProgressColumn):
    """Updates a second, from rich's own moving window."""

    def render(self, task: rich.progress.Task) -> Text:
        return Text(f"{task.speed:.3g} steps/s" if task.speed else "", style="progress.data.speed")
