"""COCO's average precision of keypoints, by pycocotools: objects are matched by the similarity of points (OKS)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.tasks.average_precision import evaluated
from transfer_jax.tasks.metric import Batch, Collected, Result

NAMES = {"keypoint_average_precision": 0, "keypoint_average_precision_50": 1, "keypoint_average_precision_75": 2,
         "keypoint_average_recall": 5}
PERSON = 17  # COCO's points of a person, whose constants pycocotools has
OTHER = 0.05  # the constant of points of other objects


def _rows(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    if "place" not in batch:
        raise UserError("the metric keypoint_average_precision has to know where the window of each object lies and "
                        "how large the object is; evaluate it on data of kind 'coco_keypoints', with 'place' in the "
                        "stream's targets")
    return {"found": batch["prediction"].astype(jnp.float32), "true": batch["label"], "place": batch["place"]}


def keypoint_average_precision(found: np.ndarray, true: np.ndarray, place: np.ndarray) -> Result:
    """COCO's scores of answers [n, K, 3] (x, y, how sure) against keypoints [n, K, 3] (x, y, visibility).

    Both are in units of windows `place` [n, 6]: left, top, width, height in pixels, the area of the object, the number
    of its image. There is an answer for every object, so these are the scores of known boxes. Its score is the mean of
    how sure its points are. NaN without an object that has a known point.

    Raises:
      UserError: if pycocotools is missing.
    """
    known = (true[..., 2] > 0).any(1)
    if not known.any():
        return dict.fromkeys(NAMES, float("nan"))
    everywhere = np.full(true.shape[1], 2.0)
    truth = [_annotation(number, row, place[number], row[:, 2]) for number, row in enumerate(true)]
    answers = [_annotation(number, row, place[number], everywhere, float(row[:, 2].mean()))
               for number, row in enumerate(found)]
    sigmas = None if true.shape[1] == PERSON else np.full(true.shape[1], OTHER)
    images = int(place[:, 5].max()) + 1
    stats = evaluated(truth, answers, images, "keypoints", sigmas).stats
    return {name: float(stats[at]) if stats[at] >= 0 else float("nan") for name, at in NAMES.items()}


def _annotation(number: int, points: np.ndarray, place: np.ndarray, visible: np.ndarray,
                score: float = 0.0) -> dict[str, Any]:
    """COCO's annotation of an object; its identity counts from 1 on, since COCO takes 0 for 'no match'."""
    left, top, width, height, area, image = (float(value) for value in place)
    x, y = left + points[:, 0].astype(np.float64) * width, top + points[:, 1].astype(np.float64) * height
    shown = visible > 0
    numbers = np.stack([np.where(shown, x, 0), np.where(shown, y, 0), visible], 1)
    return {"id": number + 1, "image_id": int(image), "category_id": 1, "keypoints": numbers.reshape(-1).tolist(),
            "num_keypoints": int(shown.sum()), "area": area, "bbox": [left, top, width, height], "iscrowd": 0,
            "score": score}


KEYPOINT_AVERAGE_PRECISION = Collected(
    _rows, lambda kept: keypoint_average_precision(kept["found"], kept["true"], kept["place"]),
    dict.fromkeys(NAMES, "max"))
