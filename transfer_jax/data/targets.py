"""Labels that are no class number: several classes at once, numbers, points, and maps of depth and of normals.

A stream shows those that its `targets` name, each under its name in the batch:

    labels      int32 [K]: 1 or 0, whether the image shows each of K classes; -1: not known
    target      float32 [D]: numbers
    keypoints   float32 [K, 3]: x and y in units of the image, and COCO's visibility: 0 not known, 1 hidden, 2 visible
    depth       float32 [H, W]: positive distances; 0 (and what is not finite, or negative): not known
    normals     float32 [H, W, 3]: unit vectors, x to the right and y down in the image; of length 0: not known
    place       float32 [6]: where the image is cut out of a larger one, before any augmentation: left, top, width and
                height in its pixels, the area of the object shown, the number of the larger image; width 0: not known
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer_jax.data.decoding import UnreadableImage, resize_map, window_of

Size = tuple[int, int]
Description = Mapping[str, Any]
SHORTEST = 1e-6  # of a normal


@dataclass(frozen=True)
class Target:
    """A kind of label.

    Attributes:
      shapes: (height, width of the image, number of columns) -> the shapes that an example may have.
      prepare: (value of one of these shapes, size of the image, description of the preprocessing, name of the example)
        -> what a batch holds of it.
      unknown: what an example that has no such label holds everywhere.
      columns: whether the columns have names.
    """

    shapes: Callable[[int, int, int], tuple[tuple[int, ...], ...]]
    prepare: Callable[[np.ndarray, Size, Description, str], np.ndarray]
    unknown: float = 0
    dtype: type = np.float32
    columns: bool = False


def _labels(value: np.ndarray, size: Size, description: Description, name: str) -> np.ndarray:
    found = np.where(np.isnan(value), -1, value)
    if not np.isin(found, (-1, 0, 1)).all():
        raise UnreadableImage(f"{name} has 'labels' other than 0, 1 and -1 (not known); mend its annotation")
    return found.astype(np.int32)


def _target(value: np.ndarray, size: Size, description: Description, name: str) -> np.ndarray:
    if not np.isfinite(value).all():
        raise UnreadableImage(f"{name} has a 'target' that is not finite; mend or remove it")
    return np.atleast_1d(value).astype(np.float32)


def _keypoints(value: np.ndarray, size: Size, description: Description, name: str) -> np.ndarray:
    place, seen = value[:, :2], value[:, 2] if value.shape[1] == 3 else np.full(len(value), 2.0)
    if not np.isin(seen, (0, 1, 2)).all():
        raise UnreadableImage(f"{name} has a keypoint whose visibility is not 0, 1 or 2; mend its annotation")
    top, left, bottom, right = window_of(size, description)
    place = (place - [left, top]) / [right - left, bottom - top]
    inside = np.isfinite(place).all(1) & (place >= 0).all(1) & (place <= 1).all(1) & (seen > 0)
    return np.where(inside[:, None], np.column_stack([place, seen]), 0).astype(np.float32)


def _depth(value: np.ndarray, size: Size, description: Description, name: str) -> np.ndarray:
    value = value.reshape(size)
    return resize_map(np.where(np.isfinite(value) & (value > 0), value, 0).astype(np.float32), description)


def _normals(value: np.ndarray, size: Size, description: Description, name: str) -> np.ndarray:
    length = np.linalg.norm(value, axis=-1, keepdims=True)
    known = np.isfinite(length) & (length > SHORTEST)
    unit = np.where(known, value / np.where(known, length, 1), 0)
    return resize_map(unit.astype(np.float32), description)


def _place(value: np.ndarray, size: Size, description: Description, name: str) -> np.ndarray:
    top, left, bottom, right = window_of(size, description)
    x, y, width, height = value[:4]
    window = [x + left * width, y + top * height, (right - left) * width, (bottom - top) * height]
    return np.float32([*window, *value[4:]])


TARGETS = {
    "labels": Target(lambda h, w, k: ((k,),), _labels, -1, np.int32, columns=True),
    "target": Target(lambda h, w, k: ((k,), ()) if k == 1 else ((k,),), _target, columns=True),
    "keypoints": Target(lambda h, w, k: ((k, 3), (k, 2)), _keypoints, columns=True),
    "depth": Target(lambda h, w, k: ((h, w), (h, w, 1)), _depth),
    "normals": Target(lambda h, w, k: ((h, w, 3),), _normals),
    "place": Target(lambda h, w, k: ((6,),), _place),
}


def prepare_target(kind: str, value: Any, size: Size, description: Description, columns: int,
                   name: str) -> np.ndarray:
    """What a batch holds of the label `kind` of an example, on the window that `prepare_image` shows of its image.

    Args:
      size: height and width of the stored image. columns: how many the data set has.

    Raises:
      UnreadableImage: naming the example, for values that mean nothing or another shape.
    """
    target, value = TARGETS[kind], np.asarray(value, np.float64)
    shapes = target.shapes(*size, columns)
    if value.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise UnreadableImage(f"{name} has {kind!r} of the shape {list(value.shape)}, but the image calls for "
                              f"{wanted}; mend its annotation")
    return target.prepare(value, size, description, name)


def unknown_target(kind: str, size: Size, columns: int) -> np.ndarray:
    """What a batch holds of an example without this label; `size`: of the image in the batch."""
    target = TARGETS[kind]
    return np.full(target.shapes(*size, columns)[0], target.unknown, target.dtype)
