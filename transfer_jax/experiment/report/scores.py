"""The tables of a report: scores and costs of methods, differences, classes, stages, what was frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transfer_jax.experiment.report import statistics
from transfer_jax.experiment.report.collect import Result, Run
from transfer_jax.experiment.report.pivot import Pivot, Row
from transfer_jax.experiment.report.tables import Table
from transfer_jax.training.progress import group_cells, quantity

MISSING = "–"


SIDE_BY_SIDE = 4  # columns of scores; where there would be more, selection rules share a cell


def score_tables(runs: Sequence[Run], table: Pivot, selections: Sequence[str] | None = None) -> list[Table]:
    """Rows are methods, columns the settings and costs: one table a stream, or a single one if there is no x."""
    selections = selections or table.selections
    split = [[stream] for stream in table.layout.streams] if table.layout.x else [table.layout.streams]
    built = []
    for streams in split:
        keys = [(stream, x, selection) for stream in streams for x in table.xs for selection in selections
                if any((stream, x, selection) in row.cells for row in table.rows)]
        if keys:
            built.append(_score_table(runs, table, keys))
    return built


def column_name(table: Pivot, x: Any) -> str:
    """'labels 10', or 'no labels' for rows without the tag."""
    return f"no {table.layout.x}" if x is None else f"{table.layout.x} {x}"


def _score_table(runs: Sequence[Run], table: Pivot, keys: list[tuple]) -> Table:
    digits = statistics.decimals([v for row in table.rows for key in keys if key in row.cells
                                  for v in row.cells[key].values])
    present = [row for row in table.rows if any(key in row.cells for key in keys)]
    stacked = len(keys) > SIDE_BY_SIDE and len({key[2] for key in keys}) > 1
    shown = list(dict.fromkeys((*key[:2], None) for key in keys)) if stacked else keys
    groups = [[key for key in keys if stacked and key[:2] == head[:2] or key == head] for head in shown]
    lead = ["run", "method"] if table.several_runs else [table.layout.row or "stage"]
    columns = [*lead, *(_score_column(table, group[0], keys, stacked) for group in groups),
               "seeds", "trainable", "optimizer", "seconds"]
    rows = []
    for row in present:
        names = [row.run, row.name] if table.several_runs else [row.name]
        seeds = span([len(row.cells[key].values) for key in keys if key in row.cells], str)
        rows.append([*names, *(_score(row, group, digits) for group in groups), seeds, *_costs(runs, row)])
    first = [[_summary(row, group[0]) for group in groups] for row in present]
    first_rule, *others = dict.fromkeys(key[2] for key in keys)
    notes = [f"First line: {first_rule}; below it: {', '.join(others)}."] if stacked else []
    title = f"{table.layout.metric} on {' and '.join(dict.fromkeys(key[0] for key in keys))}"
    return _seeds_below(Table(columns, rows, title, _best(first, table.layout.lower, len(lead)), notes,
                              labels=len(lead)))


def _seeds_below(table: Table) -> Table:
    """The table with its number of seeds in a note instead of a column, if it is the same in every row."""
    column = list(table.columns).index("seeds")
    counts = {row[column] for row in table.rows}
    if len(counts) > 1:
        return dataclasses.replace(table, notes=["Mean ± half width of the 95 % interval.", *table.notes])
    count = counts.pop()
    note = "One seed: no interval." if count == "1" else f"Mean ± half width of the 95 % interval over {count} seeds."
    return dataclasses.replace(table.without(column), notes=[note, *table.notes])


def _summary(row: Row, key: tuple) -> statistics.Summary | None:
    return statistics.summarize(row.cells[key].values) if key in row.cells else None


def _score(row: Row, keys: Sequence[tuple], digits: int) -> str:
    """The first score of a cell, and below it those of other selection rules with their names."""
    lines = [(key[2], _summary(row, key)) for key in keys]
    if len(lines) == 1:
        return MISSING if lines[0][1] is None else statistics.text(lines[0][1], digits)
    texts = [MISSING if found is None else statistics.text(found, digits) for _, found in lines]
    # The note below the table names the second line; with more than two each needs its own name.
    marks = ["", ""] if len(lines) == 2 else ["", *(f"{rule} " for rule, _ in lines[1:])]
    return "\n".join(mark + text for i, (mark, text, (_, found)) in enumerate(zip(marks, texts, lines, strict=True))
                     if i == 0 or found is not None)


def _score_column(table: Pivot, key: tuple, keys: list[tuple], stacked: bool) -> str:
    stream, x, selection = key
    parts = [stream] if len({k[0] for k in keys}) > 1 else []
    parts += [column_name(table, x)] if table.layout.x else []
    parts += [selection] if len({k[2] for k in keys}) > 1 and not stacked or not parts else []
    return ", ".join(parts)


def _best(summaries: list[list], lower: bool, offset: int) -> set[tuple[int, int]]:
    """Positions of the best mean of each column (of all that tie); none in a column with a single entry."""
    best = set()
    for j in range(len(summaries[0]) if summaries else 0):
        means = {i: row[j].mean for i, row in enumerate(summaries) if row[j] is not None and np.isfinite(row[j].mean)}
        if len(means) > 1:
            top = (min if lower else max)(means.values())
            best |= {(i, j + offset) for i, mean in means.items() if mean == top}
    return best


def _costs(runs: Sequence[Run], row: Row) -> list[str]:
    """Trainable parameters, optimizer bytes and seconds; a range if the settings differ."""
    run = next(run for run in runs if run.name == row.run)
    scored = [run.stages[s] for s in dict.fromkeys(c.result.stage for c in row.cells.values()) if s in run.stages]
    # Earlier stages of the same setting (a probe before fine-tuning) cost time too: seconds are those of the setting.
    seconds: dict[str, float] = {}
    for stage in row.stages:
        facts = run.stages.get(stage, {})
        setting = str(sorted((facts.get("tags") or {}).items())) if facts.get("tags") else stage
        seconds[setting] = seconds.get(setting, 0.0) + float(facts.get("seconds") or 0.0)
    return [span([facts.get("trainable") for facts in scored], quantity),
            span([facts.get("optimizer_bytes") for facts in scored], lambda n: quantity(n, "B")),
            span(list(seconds.values()), lambda s: f"{s:.3g}" if s < 100 else f"{s:.0f}")]


def span(values: Sequence[Any], form: Callable[[Any], str]) -> str:
    """'12' if all `values` look the same in the given form, else '12–15'; a dash if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    low, high = form(min(known)), form(max(known))
    return low if low == high else f"{low}–{high}"


def difference_tables(table: Pivot) -> list[Table]:
    """Paired differences to the reference row, per stream, of the first selection rule both have."""
    if table.layout.reference is None:
        return []
    lead = 2 if table.several_runs else 1
    built = []
    for stream in table.layout.streams:
        found = [(row, [_difference(table, row, (stream, x)) for x in table.xs]) for row in table.rows]
        found = [(row, cells) for row, cells in found if any(cell is not None for cell in cells)]
        if not found:
            continue
        shown = [i for i in range(len(table.xs)) if any(cells[i] is not None for _, cells in found)]
        digits = statistics.decimals([c.mean for _, cells in found for c in cells if c is not None])
        names = [column_name(table, table.xs[i]) if table.layout.x else table.layout.metric for i in shown]
        rows = [[*([row.run] if table.several_runs else []), row.name,
                 *(MISSING if cells[i] is None else statistics.text(cells[i], digits, signed=True) for i in shown)]
                for row, cells in found]
        clear = {(r, lead + c) for r, (_, cells) in enumerate(found) for c, i in enumerate(shown)
                 if cells[i] is not None and cells[i].half is not None and (cells[i].low > 0 or cells[i].high < 0)}
        built.append(Table([*(["run"] if table.several_runs else []), table.layout.row or "stage", *names], rows,
                           f"{table.layout.metric} on {stream}: difference to {table.layout.reference!r}", clear,
                           labels=lead))
    return built


def _difference(table: Pivot, row: Row, where: tuple[str, Any]) -> statistics.Summary | None:
    reference = table.reference_row(row.run)
    if reference is None or reference is row:
        return None
    stream, x = where
    for selection in table.selections:
        key = (stream, x, selection)
        # A reference that knows no x (the source model as it is) stands for every x.
        other = reference.cells.get(key) or reference.cells.get((stream, None, selection))
        if key in row.cells and other is not None:
            return statistics.paired_difference(row.cells[key].values, other.values)
    return None


def all_numbers(runs: Sequence[Run]) -> Table:
    """Every metric of every stage, stream and selection rule."""
    results = [(run, result) for run in runs for result in run.results]
    names = list(dict.fromkeys(name for _, result in results for name in result.metrics))
    several = len(runs) > 1
    digits = {name: statistics.decimals([v for _, r in results for v in r.metrics.get(name, ())]) for name in names}
    rows = [[*([run.name] if several else []), run.title(r.stage), r.stream, r.selection,
             *(statistics.text(statistics.summarize(r.metrics[n]), digits[n]) if n in r.metrics else MISSING
               for n in names)] for run, r in results]
    lead = [*(["run"] if several else []), "stage", "stream", "selection"]
    return Table([*lead, *names], rows, "Every metric of every stage", labels=len(lead), folded=True)


def class_table(result: Result, title: str) -> Table | None:
    """Per-class metrics, classes down the rows."""
    if not result.per_class:
        return None
    columns = {name: values for name, values in result.per_class.items()}
    count = max(values.shape[1] for values in columns.values())
    names = [*result.class_names, *(str(i) for i in range(len(result.class_names), count))]
    rows = [[names[k], *(statistics.text(statistics.summarize(v[:, k])) if k < v.shape[1] else MISSING
                         for v in columns.values())] for k in range(count)]
    return Table(["class", *columns], rows, title, folded=True)


def confused_pairs(confusion: np.ndarray, class_names: Sequence[str], count: int = 5) -> Table | None:
    """The `count` most frequent confusions, as shares of their true class."""
    wrong = np.array(confusion, np.float64)
    np.fill_diagonal(wrong, 0)
    totals = np.maximum(confusion.sum(axis=1), 1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(i), len(wrong)) for i in order if wrong.flat[i] > 0]
    name = dict(enumerate(class_names))
    rows = [[name.get(t, str(t)), name.get(p, str(p)), quantity(wrong[t, p]), f"{100 * wrong[t, p] / totals[t]:.1f}%"]
            for t, p in pairs]
    columns = ["true", "taken for", "count", "share of the true class"]
    return Table(columns, rows, "Most frequent confusions", labels=2) if rows else None


def stage_table(runs: Sequence[Run]) -> Table:
    """One row a stage: where it started, how long it took, what moved, how its checkpoint was chosen."""
    several = len(runs) > 1
    columns = ["stage", "starts from", "steps", "seconds", "trainable", "of all", "optimizer", "selected by", "skipped",
               "notes"]
    rows = [[*([run.name] if several else []), *_stage_row(run, facts, stage)]
            for run in runs for stage, facts in run.stages.items()]
    return Table([*(["run"] if several else []), *columns], rows, "Stages in order", labels=2 + several, folded=True)


def _stage_row(run: Run, facts: Mapping[str, Any], stage: str) -> list[str]:
    trainable, total = facts.get("trainable"), facts.get("total")
    start = run.start(stage)
    init = facts.get("init")
    if isinstance(init, Mapping):
        init = " + ".join(f"{weight:g} {run.title(name)}" for name, weight in init.items())
    origin = run.title(start) if start else init or MISSING
    return [run.title(stage), origin, f"{facts.get('steps', 0):,}", f"{facts.get('seconds', 0.0):.1f}",
            MISSING if trainable is None else quantity(trainable),
            f"{100 * trainable / total:.1f}%" if total and trainable is not None else MISSING,
            MISSING if facts.get("optimizer_bytes") is None else quantity(facts["optimizer_bytes"], "B"),
            str(facts.get("select") or MISSING), str(sum((facts.get("skipped_examples") or {}).values())),
            "; ".join(facts.get("notes") or ()) or MISSING]


def group_tables(runs: Sequence[Run], row: str | None = None) -> list[Table]:
    """The parameter groups; stages with the very same groups share one table, named by their tag `row` if any."""
    tables: dict[tuple, list[str]] = {}
    frozen: dict[tuple, str] = {}
    for run in runs:
        for stage, facts in run.stages.items():
            rows = tuple(tuple(group_cells(group)) for group in facts.get("groups") or ())
            if rows:
                still = [f"{group['group']} {100 * group['share']:.3g}%" for group in facts["groups"]
                         if group.get("frozen")]
                frozen[rows] = f"not trained: {', '.join(still)}" if still else "all trained"
                title = str((facts.get("tags") or {}).get(row) or run.title(stage))
                tables.setdefault(rows, []).append(f"{run.name}: {title}" if len(runs) > 1 else title)
    columns = ["group", "tensors", "parameters", "share", "optimizer", "lr", "weight decay", "optimizer state"]
    return [Table(columns, rows, f"{shorten(names)} ({frozen[rows]})", folded=True) for rows, names in tables.items()]


def shorten(names: Sequence[str], count: int = 6) -> str:
    """The names in one line, the first few if there are many."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return "; ".join(names[:count]) + more


def trained_in_parallel(runs: Sequence[Run]) -> list[str]:
    """Titles of the stages that trained in parallel with others, 'a and b', a text for each group of them."""
    groups: dict[tuple, None] = {}
    for run in runs:
        for stage, facts in run.stages.items():
            own = {stage, *(facts.get("beside") or ())}
            if len(own) > 1:
                groups[run.name, *(name for name in run.stages if name in own)] = None
    titles = {run.name: run.title for run in runs}
    return [" and ".join(titles[name](stage) for stage in stages) for name, *stages in groups]


def skipped_examples(runs: Sequence[Run]) -> dict[str, int]:
    """Unreadable examples left out, per stream (the most of any stage, since stages share their streams)."""
    counts: dict[str, int] = {}
    for run in runs:
        for facts in run.stages.values():
            for stream, count in (facts.get("skipped_examples") or {}).items():
                name = f"{run.name}/{stream}" if len(runs) > 1 else stream
                counts[name] = max(counts.get(name, 0), int(count))
    return {name: count for name, count in counts.items() if count}
