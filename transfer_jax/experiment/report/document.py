"""What a report says, in order, free of its form: sections of paragraphs, tables and figures."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer_jax.experiment.report import choices, scores, statistics
from transfer_jax.experiment.report.collect import Result, Run
from transfer_jax.experiment.report.pivot import Layout, Pivot, best_result, layout, pivot
from transfer_jax.experiment.report.tables import Table

MOST_CURVES = 12
MOST_LINES = 14
MOST_BARS = 40
MOST_DETAILS = 3
MOST_EMBEDDINGS = 2

SELECTION_RULES = {
    "last": "last = parameters at the end of the stage",
    "best": "best = checkpoint chosen by the declared metric (column 'selected by')",
    "oracle": "oracle = checkpoint chosen on the very scores shown: an upper bound, not an achievable result",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image; `name` is its file name without suffix, `kind` 'svg' or 'png', `small` ones stand side by side."""

    name: str
    kind: str
    content: bytes
    caption: str
    small: bool = False


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as many in a row as fit."""

    pictures: Sequence[Picture]


Block = str | Table | Picture | Gallery


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Document:
    title: str
    lead: Sequence[str]
    sections: Sequence[Section]

    def pictures(self) -> list[Picture]:
        blocks = [block for section in self.sections for block in section.blocks]
        return [picture for block in blocks if isinstance(block, Picture | Gallery)
                for picture in (block.pictures if isinstance(block, Gallery) else [block])]


def compose(runs: Sequence[Run], title: str | None = None) -> Document:
    """The whole report on `runs`; sections without anything to show are left out."""
    from transfer_jax.experiment.report.mistakes import mistake_blocks, shown_results  # draw: slow to import
    from transfer_jax.experiment.report.task_section import several_task_blocks

    asked = layout(runs)
    table = pivot(runs, asked)
    chosen = _details(runs, table)
    sections = [
        Section("Results", [*scores.score_tables(runs, table), *result_figures(table)]),
        Section("Differences", _differences(table)),
        Section("Tasks learned together", several_task_blocks(runs, asked)),
        Section("Choosing without target labels", _choices(runs, asked)),
        Section("Learning curves", curves(runs, asked)),
        Section("Confusion", [block for run, result in chosen for block in _confusion(run, result, len(runs) > 1)]),
        Section("Worst mistakes", [block for run, result in shown_results(runs, table, chosen)
                                   for block in mistake_blocks(run, result)]),
        Section("Calibration", _calibration(chosen)),
        Section("Features before and after", [block for run, result in _moved_features(runs, table)
                                              for block in _embedding(run, result)]),
        Section("What was trained and what was frozen", scores.group_tables(runs, asked.row)),
        Section("Everything", [scores.stage_table(runs), scores.all_numbers(runs)]),
    ]
    name = title or asked.title or " and ".join(dict.fromkeys(str(run.config.get("name") or run.name) for run in runs))
    return Document(name, _lead(runs, table, chosen), [section for section in sections if section.blocks])


def _lead(runs: Sequence[Run], table: Pivot, chosen: Sequence[tuple[Run, Result]]) -> list[str]:
    counts = sorted({len(cell.values) for row in table.rows for cell in row.cells.values()})
    if counts in ([], [1]):
        seeds = "Numbers come from one seed: there is no interval, and small differences mean nothing."
    else:
        among = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        seeds = (f"Numbers are means over {among} seeds ± the half width of their 95 % confidence interval "
                 "(Student's t).")
    rules = "; ".join(SELECTION_RULES.get(s, f"{s} = checkpoint chosen by {s}") for s in table.selections)
    lead = [seeds, f"Selection of the checkpoint: {rules}." if rules else "No results yet.",
            "Seconds are wall time of a setting for all its seeds together, without the stages it starts from.",
            *(f"Trained in parallel, so that the seconds of each are those of all up to its end: {names}."
              for names in scores.trained_in_parallel(runs))]
    skipped = scores.skipped_examples(runs)
    lead.append("Unreadable examples left out: " + ", ".join(f"{n} of {s}" for s, n in skipped.items()) + "."
                if skipped else "No example was left out as unreadable.")
    if chosen:
        names = "; ".join(_name(run, result, len(runs) > 1) for run, result in chosen)
        lead.append(f"Shown in detail, for the best mean {table.layout.metric} of its run: {names}.")
    if table.covered:
        lead.append(f"Scored under the same row and column as a later stage, so found under 'Everything' alone: "
                    f"{scores.shorten(table.covered)}.")
    return [*table.layout.notes, *lead]


def _name(run: Run, result: Result, several: bool) -> str:
    return f"{run.name + ': ' if several else ''}{run.title(result.stage)}, {result.stream}, {result.selection}"


def _moved_features(runs: Sequence[Run], table: Pivot) -> list[tuple[Run, Result]]:
    """The best result of each of the first runs among the stages that trained and measured their features."""
    found = [(run, best_result(table, run.name, [stage for stage, facts in run.stages.items()
                                                 if facts.get("trainable") and run.features(stage)]))
             for run in runs[:MOST_EMBEDDINGS]]
    return [(run, result) for run, result in found if result is not None]


def _details(runs: Sequence[Run], table: Pivot) -> list[tuple[Run, Result]]:
    """The result of every run that is shown in detail (of a few runs at most): its best."""
    found = [(run, best_result(table, run.name)) for run in runs]
    return [(run, result) for run, result in found if result is not None][:MOST_DETAILS]


def result_figures(table: Pivot, ringed: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
                   meaning: str = "") -> list[Block]:
    """The metric against x, or bars if there is no x: one picture per stream, of the first selection rule.

    `ringed`: stream -> row -> settings of points to draw a ring around; `meaning`: what the ring says.
    """
    from transfer_jax.experiment.report import figures  # matplotlib: only when something is drawn

    asked, blocks = table.layout, []
    for stream in asked.streams:
        series = {table.label(row): {x: statistics.summarize(row.cells[key].values) for x in table.xs
                                     if (key := (stream, x, table.selections[0])) in row.cells}
                  for row in table.rows} if table.selections else {}
        series = {name: points for name, points in series.items() if points}
        lines = any(x is not None for points in series.values() for x in points)
        shown = dict(list(series.items())[:MOST_LINES if lines else MOST_BARS])
        axis = f"{asked.metric} on {stream}"
        caption = f"{axis} ({table.selections[0]})" if series else ""
        if len(series) > len(shown):
            caption += f"; the first {len(shown)} of {len(series)} methods"
        if lines:
            rings = (ringed or {}).get(stream, {})
            image = figures.against_x(shown, asked.x, axis, rings)
            caption += f" against {asked.x}: mean and {figures.INTERVAL}; dotted: a method without {asked.x}"
            caption += f"; ring: {meaning}" if rings else ""
        elif shown:
            rows = [(table.label(row), shown[table.label(row)][None],
                     row.cells[(stream, None, table.selections[0])].values)
                    for row in table.rows if table.label(row) in shown]
            image = figures.bars(rows, axis)
            caption += f": mean, {figures.INTERVAL}, and every seed as a dot"
        else:
            continue
        blocks.append(Picture(f"{slug(asked.metric)}_{slug(stream)}", "svg", image, caption + "."))
    return blocks


def _differences(table: Pivot) -> list[Block]:
    tables = scores.difference_tables(table)
    if not tables:
        return []
    return ["Differences seed by seed (paired: same seed, same split), mean ± half width of the 95 % interval. "
            "Bold: the interval does not contain zero. Intervals are not corrected for the number of comparisons.",
            *tables]


def _choices(runs: Sequence[Run], asked: Layout) -> list[Block]:
    """What validators choose and what it costs, how far the domains are apart, and pictures of both."""
    validated = [(run, stage) for run in runs for stage in dict.fromkeys(s for s, _ in choices.validated_stages(run))]
    if not validated:
        return []
    found = [one for one in choices.read_choices(runs, asked) if len(one.steps) > 1]
    blocks: list[Block] = [choices.MEANING] if found else []
    blocks += [choices.regret_table(found)] if len(found) > 1 else []
    blocks += [dataclasses.replace(choices.choice_table(one), folded=len(found) > 2) for one in found]
    if not found:
        blocks.append("There was nothing to choose: that takes two evaluation points or more (eval_every), and a "
                      "labelled stream of the target's domain among the evaluated ones to tell what a choice costs.")
    distances = choices.distance_table(runs)
    blocks += [distances] if distances else []
    kept = [(run, stage) for run, stage in validated if run.validated(stage)]
    return blocks + [_domains(run, stage) for run, stage in kept[:MOST_EMBEDDINGS]]


def _domains(run: Run, stage: str) -> Picture:
    from transfer_jax.experiment.report import figures, projection

    clouds = []
    for moment, arrays in run.validated(stage).items():
        labels, domains = arrays["feature_labels"], arrays["feature_domains"].astype(str)
        picked = projection.pick(labels, domains)
        name = {"start": "before", "end": f"after: {run.title(stage)}"}[moment]
        clouds.append(figures.Cloud(name, projection.to_plane(arrays["features"][picked]), labels[picked],
                                    domains[picked]))
    names = next((result.class_names for result in run.results if result.stage == stage), ())
    caption = (f"{run.title(stage)}, first seed: features of up to {projection.MOST_POINTS} images by PCA and t-SNE; "
               "above, colour: domain; below, the same points, colour and name: class, marker: domain, pale: no label. "
               "Distances between far groups mean nothing in such a plot.")
    return Picture(f"domains_{slug(run.name)}_{slug(stage)}", "svg", figures.domains_and_classes(clouds, names),
                   caption)


def curves(runs: Sequence[Run], asked: Layout) -> list[Block]:
    """Small multiples, one per stage; at most `MOST_CURVES`."""
    from transfer_jax.experiment.report import figures

    found = [(run, stage, *_curves_of(run, stage, asked)) for run in runs for stage in run.stages]
    found = [entry for entry in found if entry[2] is not None or entry[3]]
    shown = _spread_over_rows(found, asked)
    values = [v for _, _, _, by_stream in shown for _, v in by_stream.values()]
    finite = [x for v in values for x in v[np.isfinite(v)].ravel()]
    # The same scale everywhere, so that pictures can be compared by eye.
    margin = 0.05 * (max(finite) - min(finite)) or 0.05 if finite else 0.0
    limits = (min(finite) - margin, max(finite) + margin) if finite else None
    pictures = []
    for run, stage, loss, by_stream in shown:
        title = f"{run.name}: {run.title(stage)}" if len(runs) > 1 else run.title(stage)
        image = figures.learning_curve(title, loss, by_stream, asked.metric, limits)
        pictures.append(Picture(f"curve_{slug(run.name)}_{slug(stage)}", "svg", image, "", small=True))
    if not pictures:
        return []
    text = "Mean over seeds, band: 95 % interval. Training loss is not on the same scale from stage to stage."
    if len(found) > len(shown):
        text += f" Shown are {len(shown)} of {len(found)} stages; metrics.jsonl holds them all."
    return [text, Gallery(pictures)]


def _curves_of(run: Run, stage: str, asked: Layout) -> tuple[Any, dict[str, Any]]:
    lines = [line for line in run.metrics if line["stage"] == stage]
    loss = _curve([line for line in lines if line["kind"] == "train"], "loss")
    streams = dict.fromkeys(line["stream"] for line in lines if line["kind"] == "eval")
    scored = {s: _curve([line for line in lines if line.get("stream") == s], asked.metric) for s in streams}
    return loss, {s: curve for s, curve in scored.items() if curve is not None}


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    lines = [line for line in lines if name in line["metrics"]]
    if not lines:
        return None
    width = min(len(line["metrics"][name]) for line in lines)
    values = np.array([line["metrics"][name][:width] for line in lines], np.float64).T
    return np.array([line["step"] for line in lines], np.float64), values


def _spread_over_rows(found: list[tuple], asked: Layout) -> list[tuple]:
    """At most `MOST_CURVES` entries in order: the last stage of every method first, then the others as they come."""
    if len(found) <= MOST_CURVES:
        return found
    last = {(run.name, str((run.stages[stage].get("tags") or {}).get(asked.row, stage))): i
            for i, (run, stage, *_) in enumerate(found)}
    by_run: dict[str, list[int]] = {}
    for (run_name, _), i in last.items():
        by_run.setdefault(run_name, []).append(i)
    # Run by run in turn, so that the first of many runs does not take every place.
    in_turn = [i for chosen in itertools.zip_longest(*map(sorted, by_run.values())) for i in chosen if i is not None]
    rest = [i for i in range(len(found)) if i not in in_turn]
    return [found[i] for i in sorted([*in_turn, *rest][:MOST_CURVES])]


def _confusion(run: Run, result: Result, several: bool) -> list[Block]:
    name = _name(run, result, several)
    blocks: list[Block] = []
    if result.confusion is not None:
        from transfer_jax.experiment.report import figures

        unit = "pixels" if "masks_true" in (run.predictions(result.stage, result.stream) or {}) else "images"
        caption = f"{name}: confusion in % of the true class, {unit} of all seeds."
        blocks.append(Picture(f"confusion_{slug(run.name)}_{slug(result.stage)}", "svg",
                              figures.confusion_matrix(result.confusion, result.class_names), caption))
        pairs = scores.confused_pairs(result.confusion, result.class_names)
        blocks += [pairs] if pairs else []
    classes = scores.class_table(result, f"Every class: {name}")
    return [*blocks, *([classes] if classes else [])]


def _calibration(chosen: Sequence[tuple[Run, Result]]) -> list[Block]:
    pictures = []
    for run, result in chosen:
        arrays = run.predictions(result.stage, result.stream)
        if arrays is None or not {"confidence", "label", "prediction"} <= set(arrays) or not len(arrays["label"]):
            continue
        from transfer_jax.experiment.report import figures

        correct = np.asarray(arrays["label"]) == np.asarray(arrays["prediction"])
        image, error = figures.reliability(np.asarray(arrays["confidence"], np.float64), correct)
        caption = (f"{run.title(result.stage)} on {result.stream}, first seed: expected calibration error "
                   f"{error:.3f} in 15 bins; vertical lines: the gap.")
        pictures.append(Picture(f"reliability_{slug(run.name)}_{slug(result.stage)}", "svg", image, caption, True))
    return [Gallery(pictures)] if pictures else []


def _embedding(run: Run, result: Result) -> list[Block]:
    after = run.features(result.stage)
    if not after:
        return []
    from transfer_jax.experiment.report import figures, projection

    origin, before = _features_before(run, result.stage, after)
    if set(before) & set(after):
        before, after = ({s: arrays[s] for s in arrays if s in before and s in after} for arrays in (before, after))
    before, after = (_joined(list(arrays.values())) for arrays in (before, after))
    clouds = [(f"before: {run.title(origin)}", before)] if before else []
    clouds.append((f"after: {run.title(result.stage)}", after))
    panels, rows = [], []
    for name, arrays in clouds:
        features, labels = arrays["features"], arrays["feature_labels"]
        domains = arrays["feature_domains"].astype(str)
        picked = projection.pick(labels, domains)
        panels.append(figures.Cloud(name, projection.to_plane(features[picked]), labels[picked], domains[picked]))
        shares = [projection.neighbour_share(features, target) for target in (labels, domains)]
        rows.append([name, f"{len(features):,}", *(f"{100 * share:.1f}%" for share in shares)])
    image = figures.embedding(panels, result.class_names)
    caption = (f"{run.title(result.stage)}, first seed: features of up to {projection.MOST_POINTS} images by PCA and "
               "t-SNE; colour and name: class, marker: domain. Distances between far groups mean nothing in such a "
               "plot; the table counts in all dimensions.")
    table = Table(["features", "images", "of the same class", "of the same domain"], rows,
                  f"Share of the {projection.NEIGHBOURS} nearest neighbours")
    return [Picture(f"features_{slug(run.name)}_{slug(result.stage)}", "svg", image, caption), table]


def _features_before(run: Run, stage: str, after: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The features that `stage` began with, and the stage that measured them.

    That is the stage it began from, or, if it looked at other streams, one that began there too and trained nothing.
    """
    start = run.start(stage)
    if start is None:
        return "", {}
    still = [name for name, facts in run.stages.items() if run.start(name) == start and facts.get("trainable") == 0]
    found = [(name, run.features(name)) for name in dict.fromkeys([start, *still]) if name != stage]
    return max(found, key=lambda entry: len(set(entry[1]) & set(after)))


def _joined(files: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([arrays[key] for arrays in files]) for key in files[0]} if files else {}


def slug(text: str) -> str:
    """The text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", str(text)).strip("_") or "x"


