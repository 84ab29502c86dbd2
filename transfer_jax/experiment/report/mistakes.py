"""The section of a report that shows single examples: the worst mistakes, or answers beside the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from transfer_jax.experiment.report import answer_figures, figures
from transfer_jax.experiment.report.boxes_figure import boxes_picture
from transfer_jax.experiment.report.collect import Result, Run
from transfer_jax.experiment.report.document import Block, Gallery, Picture, slug

MOST_MISTAKES = 24
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


def mistake_blocks(run: Run, result: Result) -> list[Block]:
    """Single examples of a result, highest loss first."""
    arrays = run.predictions(result.stage, result.stream)
    if arrays is None or not len(arrays.get("thumbnails", ())):
        return []
    names = dict(enumerate(result.class_names))
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
        pictures.append(Picture(f"mistake_{slug(run.name)}_{slug(result.stage)}_{i:02d}", "png", drawn, caption,
                                small=True))
    what = DRAWINGS[kind].text if kind else "true class, then what was predicted and how surely"
    order = "highest loss first, in the second half others" if kind else "highest loss first"
    return [f"{run.title(result.stage)} on {result.stream}, first seed, {order}: {what}.",
            Gallery(pictures)] if pictures else []


def _class_caption(arrays: Mapping[str, np.ndarray], row: int, names: Names) -> str:
    true, predicted = (names.get(int(arrays[key][row]), str(arrays[key][row])) for key in ("label", "prediction"))
    sure = f" ({100 * arrays['confidence'][row]:.0f} %)" if "confidence" in arrays else ""
    return f"{true} → {predicted}{sure}"
