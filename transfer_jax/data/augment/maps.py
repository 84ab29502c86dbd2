"""What becomes of depths and normals when their image is turned or enlarged, beside the place where they are.

Normals have x to the right and y down. An image enlarged s times shows its objects s times nearer (Eigen et al. 2014,
section on data augmentation); what a crop shifts keeps its depth. Each takes maps by name and returns them all.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from transfer_jax.data.augment import geometry
from transfer_jax.data.augment.boxes import Draw, Size

Maps = dict[str, Any]


def flip(maps: Maps, draw: Draw, size: Size, xp: ModuleType, *, probability: float = 0.5) -> Maps:
    """x of normals changes its sign."""
    if "normals" not in maps:
        return maps
    turned = maps["normals"] * xp.asarray([-1, 1, 1], xp.float32)
    return {**maps, "normals": xp.where(draw(()) < probability, turned, maps["normals"])}


def rotation(maps: Maps, draw: Draw, size: Size, xp: ModuleType, *, degrees: float = 15.0, fill: float = 0.0,
             mask_fill: int = 0) -> Maps:
    """Normals turn with the image."""
    if "normals" not in maps:
        return maps
    angle = geometry.between(draw(()), -degrees, degrees) * (math.pi / 180)
    x, y, z = (maps["normals"][..., axis] for axis in range(3))
    turned = [xp.cos(angle) * x + xp.sin(angle) * y, xp.cos(angle) * y - xp.sin(angle) * x, z]
    return {**maps, "normals": xp.stack(turned, -1).astype(xp.float32)}


def scale(maps: Maps, draw: Draw, size: Size, xp: ModuleType, *, low: float = 0.8, high: float = 1.2,
          fill: float = 0.0, mask_fill: int = 0) -> Maps:
    """Depths are divided by the factor of the image."""
    return _nearer(maps, geometry.between(draw(()), low, high), xp)


def random_resized_crop(maps: Maps, draw: Draw, size: Size, xp: ModuleType, *,
                        scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (0.75, 4 / 3)) -> Maps:
    """Depths are divided by the geometric mean of the factors of both axes; normals stay, though the axes differ."""
    _, _, tall, wide = geometry.crop_window(draw((4,)), *size, scale, ratio, xp)
    return _nearer(maps, xp.sqrt(size[0] * size[1] / (tall * wide)), xp)


def _nearer(maps: Maps, factor: Any, xp: ModuleType) -> Maps:
    return {**maps, "depth": (maps["depth"] / factor).astype(xp.float32)} if "depth" in maps else maps


VALUES = {"flip": flip, "rotation": rotation, "scale": scale, "random_resized_crop": random_resized_crop}
