"""Boxes of an example, checked and padded to a fixed number: float32 [N, 5], ymin, xmin, ymax, xmax, class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from transfer_jax.data.decoding import UnreadableImage, window_of

PADDING = (0.0, 0.0, 0.0, 0.0, -1.0)


def prepare_boxes(boxes: np.ndarray, labels: np.ndarray | None, most: int, size: tuple[int, int],
                  description: Mapping[str, Any], classes: int, name: str) -> np.ndarray:
    """The boxes of an image of this `size`, on the window that `prepare_image` shows of it, padded to `most` rows.

    What lies outside is cut off, and a box without area is left out.

    Args:
      boxes: [k, 4] in units of the image; k may be 0.
      labels: [k], or None for a single class.
      classes: how many there are.

    Raises:
      UnreadableImage: naming the example, for numbers that are not finite, edges in the wrong order, a class that does
        not exist, or more than `most` boxes.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    labels = np.zeros(len(boxes)) if labels is None else np.asarray(labels).reshape(-1)
    if len(labels) != len(boxes):
        raise UnreadableImage(f"{name} has {len(boxes)} boxes but {len(labels)} classes of boxes; mend its annotation")
    if not np.isfinite(boxes).all():
        raise UnreadableImage(f"{name} has a box with a number that is not finite; mend or remove it")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise UnreadableImage(f"{name} has a box whose end lies before its start; boxes are (ymin, xmin, ymax, xmax)")
    wrong = labels[(labels < 0) | (labels >= max(classes, 1))]
    if len(wrong):
        raise UnreadableImage(f"{name} has a box of class {int(wrong[0])}, but the classes are 0 ... {classes - 1}; "
                              f"mend its annotation")
    top, left, bottom, right = window_of(size, description)
    boxes = np.clip((boxes - [top, left, top, left]) / np.tile([bottom - top, right - left], 2), 0, 1)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    if solid.sum() > most:
        raise UnreadableImage(f"{name} has {solid.sum()} boxes, more than the {most} that the stream has room for; "
                              f"raise 'boxes' in the stream")
    padded = np.tile(np.array(PADDING, np.float32), (most, 1))
    padded[:solid.sum()] = np.concatenate([boxes, labels[:, None]], 1)[solid]
    return padded
