"""How boxes move with their image: one form for host and device, from the same random numbers as the image's.

Boxes are [N, 5]: ymin, xmin, ymax, xmax in units of the image, and the class, -1 for padding. `draw` gives uniforms of
a shape, the first that the augmentation of the image draws too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

from transfer_jax.data.augment import geometry

Draw = Callable[[tuple[int, ...]], Any]
Size = tuple[int, int]
LEAST_VISIBLE = 0.25  # of a box's area
LEAST_SIDE = 2.0  # pixels


def random_resized_crop(boxes: Any, draw: Draw, size: Size, xp: ModuleType, *,
                        scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (0.75, 4 / 3)) -> Any:
    """The window becomes the image."""
    height, width = size
    top, left, tall, wide = geometry.crop_window(draw((4,)), height, width, scale, ratio, xp)
    return _affine(boxes, height / tall, width / wide, -top / tall, -left / wide, xp)


def crop(boxes: Any, draw: Draw, size: Size, xp: ModuleType, *, padding: int = 4, fill: float = 0.0,
         mask_fill: int = 0) -> Any:
    """Shifted by whole pixels."""
    offset = geometry.shift(draw((2,)), padding, xp) - padding
    return _affine(boxes, 1.0, 1.0, -offset[0] / size[0], -offset[1] / size[1], xp)


def flip(boxes: Any, draw: Draw, size: Size, xp: ModuleType, *, probability: float = 0.5) -> Any:
    """Mirrored left and right."""
    turned = xp.stack([boxes[:, 0], 1 - boxes[:, 3], boxes[:, 2], 1 - boxes[:, 1], boxes[:, 4]], -1)
    return xp.where(draw(()) < probability, turned, boxes)


def scale(boxes: Any, draw: Draw, size: Size, xp: ModuleType, *, low: float = 0.8, high: float = 1.2,
          fill: float = 0.0, mask_fill: int = 0) -> Any:
    """Enlarged about the centre."""
    factor = geometry.between(draw(()), low, high)
    shift = (1 - factor) / 2
    return _affine(boxes, factor, factor, shift, shift, xp)


def rotation(boxes: Any, draw: Draw, size: Size, xp: ModuleType, *, degrees: float = 15.0, fill: float = 0.0,
             mask_fill: int = 0) -> Any:
    """The upright box around the turned corners: larger than its object."""
    height, width = size
    angle = geometry.between(draw(()), -degrees, degrees) * (math.pi / 180)
    y = (xp.stack([boxes[:, 0], boxes[:, 0], boxes[:, 2], boxes[:, 2]]) - 0.5) * height
    x = (xp.stack([boxes[:, 1], boxes[:, 3], boxes[:, 1], boxes[:, 3]]) - 0.5) * width
    # The image's augmentation says where the new pixel comes from; this is its inverse.
    rows = (xp.cos(angle) * y - xp.sin(angle) * x) / height + 0.5
    columns = (xp.sin(angle) * y + xp.cos(angle) * x) / width + 0.5
    return xp.stack([rows.min(0), columns.min(0), rows.max(0), columns.max(0), boxes[:, 4]], -1)


MOVES = {"random_resized_crop": random_resized_crop, "crop": crop, "flip": flip, "scale": scale, "rotation": rotation}


def cut(boxes: Any, size: Size, xp: ModuleType) -> Any:
    """Boxes cut at the image's border; those that are then shorter than 2 pixels along an axis, or show less than a
    quarter of their area, become padding."""
    edges = xp.clip(boxes[:, :4], 0.0, 1.0)
    sides, before = edges[:, 2:] - edges[:, :2], boxes[:, 2:4] - boxes[:, :2]
    tall = (sides[:, 0] * size[0] >= LEAST_SIDE) & (sides[:, 1] * size[1] >= LEAST_SIDE)
    stays = tall & (sides[:, 0] * sides[:, 1] >= LEAST_VISIBLE * before[:, 0] * before[:, 1]) & (boxes[:, 4] >= 0)
    kept = xp.concatenate([edges, boxes[:, 4:]], -1)
    return xp.where(stays[:, None], kept, xp.asarray([0, 0, 0, 0, -1], xp.float32)).astype(xp.float32)


def _affine(boxes: Any, down: Any, across: Any, top: Any, left: Any, xp: ModuleType) -> Any:
    return xp.stack([boxes[:, 0] * down + top, boxes[:, 1] * across + left, boxes[:, 2] * down + top,
                     boxes[:, 3] * across + left, boxes[:, 4]], -1)
