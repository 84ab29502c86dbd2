"""COCO's mean average precision, by pycocotools, of the boxes of all images of a stream."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import jax
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.tasks.metric import Batch, Collected, Result

SCALE = 1000.0  # COCO's boxes are in pixels; overlap does not depend on the unit


NAMES = {"mean_average_precision": 0, "average_precision_50": 1, "average_precision_75": 2, "average_recall_100": 8}


def _rows(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"found": batch["prediction"], "true": batch["label"]}


def average_precision(found: np.ndarray, true: np.ndarray) -> Result:
    """COCO's scores of answers [n, M, 6] (box, class, score) against objects [n, N, 5] (box, class); class -1: none.

    NaN where there is no object at all.

    Raises:
      UserError: if pycocotools is missing.
    """
    truth, answers = _objects(true), _objects(found)
    if not truth:
        return dict.fromkeys(NAMES, float("nan"))
    stats = evaluated(truth, answers, len(true)).stats
    return {name: float(stats[place]) if stats[place] >= 0 else float("nan") for name, place in NAMES.items()}


MEAN_AVERAGE_PRECISION = Collected(_rows, lambda kept: average_precision(kept["found"], kept["true"]),
                                   dict.fromkeys(NAMES, "max"))


def _objects(rows: np.ndarray) -> list[dict[str, Any]]:
    """COCO's annotations of boxes [n, N, 5 or 6]; identities from 1 on, since COCO takes 0 for 'no match'."""
    listed = []
    for image, row in zip(*np.nonzero(rows[..., 4] >= 0), strict=True):
        top, left, bottom, right = (float(edge) * SCALE for edge in rows[image, row, :4])
        listed.append({"id": len(listed) + 1, "image_id": int(image), "category_id": int(rows[image, row, 4]),
                       "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                       "iscrowd": 0, "score": float(rows[image, row, 5]) if rows.shape[-1] > 5 else 0.0})
    return listed


def evaluated(truth: list[dict], answers: list[dict], images: int, kind: str = "bbox",
              sigmas: np.ndarray | None = None) -> Any:
    """A finished COCOeval of `kind` 'bbox' or 'keypoints'. It prints what it does, which nobody asked for.

    sigmas: [K], the constants of keypoints; None: those of COCO's persons.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError("average precision as COCO defines it needs pycocotools; install it with "
                        "'pip install pycocotools'") from error
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for annotations in (truth, answers):
            one = COCO()
            one.dataset = {"images": [{"id": number} for number in range(images)], "annotations": annotations,
                           "categories": [{"id": number} for number in
                                          sorted({a["category_id"] for a in truth + answers})]}
            one.createIndex()
            sets.append(one)
        evaluation = COCOeval(*sets, kind)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
