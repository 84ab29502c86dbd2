"""The section of a report that shows single examples: the worst mistakes, or answers beside the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from transfer_jax.experiment.report import answer_figures, figures
from transfer_jax.experiment.report.boxes_figure import boxes_picture
from transfer_jax.experiment.report.collect import Result, Run
from transfer_jax.experiment.report.document import Block, Gallery, Picture, slug
from transfer_jax.experiment.report.pivot import Pivot
from transfer_jax.experiment.report.statistics import lower_is_better
from transfer_jax.experiment.report.tables import Table

MOST_MISTAKES = 24
MOST_RESULTS = 6
Names = Mapping[int, str]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How answers of one kind are drawn: (image, truth, answer, names) -> PNG, and what it shows."""

    draw: Callable[[np.ndarray, np.ndarray, np.ndarray, Names], bytes]
    text: str


# What `TaskKind.answers` names; a file of predictions holds `<name>_true` and `<name>_predicted`.
DRAWINGS = {
    "masks": Drawing(lambda image, true, found, names: figures.thumbnail(image, [true, found]),
                     "image, true classes, predicted classes"),
    "boxes": Drawing(boxes_picture, "objects, then answers with their score in percent"),
    "tags": Drawing(answer_figures.tags_picture, "classes by their probability in percent; a dot marks those that the "
                    "image shows, a dash those that nobody knows, red what is wrong"),
    "points": Drawing(answer_figures.points_picture, "a ring where a point is, a cross where the answer is"),
    "depths": Drawing(answer_figures.depths_picture, "image, depth, answer; bright is near, black not known"),
    "normals": Drawing(answer_figures.normals_picture, "image, normals, answer; red, green and blue are x, y and z, "
                       "black is not known"),
    "images": Drawing(answer_figures.images_picture, "image, then what the network makes of it"),
}


def shown_results(runs: Sequence[Run], table: Pivot, chosen: Sequence[tuple[Run, Result]]) -> list[tuple[Run, Result]]:
    """The chosen results, and of runs that learn several tasks the best of every task by its metric."""
    found = list(chosen)
    for run in runs:
        for stream, metric in ((run.config.get("report") or {}).get("tasks") or {}).items():
            scored = [result for result in run.results if result.stream == stream and metric in result.metrics
                      and result.selection in table.selections[:1] and np.isfinite(result.metrics[metric]).all()]
            sign = -1 if lower_is_better(metric) else 1
            best = max(scored, key=lambda result: sign * result.metrics[metric].mean(), default=None)  # noqa: B023
            known = {(one.name, result.stream) for one, result in found}
            found += [(run, best)] if best is not None and (run.name, stream) not in known else []
    return found[:max(MOST_RESULTS, len(chosen))]


def mistake_blocks(run: Run, result: Result) -> list[Block]:
    """Single examples of a result, highest loss first."""
    arrays = run.predictions(result.stage, result.stream)
    names = dict(enumerate(result.class_names))
    if arrays is not None and len(arrays.get("texts", ())):
        return [_text_table(run, result, arrays, names)]
    if arrays is None or not len(arrays.get("thumbnails", ())):
        return []
    kind = next((kind for kind in DRAWINGS if f"{kind}_true" in arrays), None)
    pictures = []
    for i, row in enumerate(arrays["thumbnail_rows"]):
        if len(pictures) == MOST_MISTAKES or (kind is None and arrays["label"][row] == arrays["prediction"][row]):
            continue
        image = arrays["thumbnails"][i]
        if kind is None:
            drawn, caption = figures.thumbnail(image), _class_caption(arrays, int(row), names)
        else:
            drawn = DRAWINGS[kind].draw(image, arrays[f"{kind}_true"][i], arrays[f"{kind}_predicted"][i], names)
            caption = f"loss {arrays['loss'][row]:.2f}" if "loss" in arrays else ""
        name = f"mistake_{slug(run.name)}_{slug(result.stage)}_{slug(result.stream)}_{i:02d}"
        pictures.append(Picture(name, "png", drawn, caption, small=True))
    what = DRAWINGS[kind].text if kind else "true class, then what was predicted and how surely"
    order = "highest loss first, in the second half others" if kind else "highest loss first"
    return [f"{run.title(result.stage)} on {result.stream}, first seed, {order}: {what}.",
            Gallery(pictures)] if pictures else []


def _text_table(run: Run, result: Result, arrays: Mapping[str, np.ndarray], names: Names) -> Table:
    """Texts that were answered wrongly, highest loss first."""
    rows = [[_class_caption(arrays, int(row), names), str(text)]
            for row, text in list(zip(arrays["text_rows"], arrays["texts"], strict=True))[:MOST_MISTAKES]]
    return Table(["true class → answer", "text"], rows,
                 f"{run.title(result.stage)} on {result.stream}, first seed: wrong answers, highest loss first")


def _class_caption(arrays: Mapping[str, np.ndarray], row: int, names: Names) -> str:
    true, predicted = (names.get(int(arrays[key][row]), str(arrays[key][row])) for key in ("label", "prediction"))
    sure = f" ({100 * arrays['confidence'][row]:.0f} %)" if "confidence" in arrays else ""
    return f"{true} → {predicted}{sure}"
