"""What random numbers mean: the parameters of each augmentation from uniforms in [0, 1), for host and device alike."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any


def crop_window(u: Any, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float],
                xp: ModuleType) -> tuple[Any, Any, Any, Any]:
    """(top, left, tall, wide) in pixels of a window whose share of the area is uniform in `scale` and whose aspect
    ratio (width/height) is log-uniform in `ratio` (Szegedy et al. 2015), cut to the image; `u` holds 4 uniforms."""
    area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
    aspect = xp.exp(math.log(ratio[0]) + u[1] * (math.log(ratio[1]) - math.log(ratio[0])))
    tall = xp.minimum(xp.sqrt(area / aspect), height)
    wide = xp.minimum(xp.sqrt(area * aspect), width)
    return u[2] * (height - tall), u[3] * (width - wide), tall, wide


def shift(u: Any, padding: int, xp: ModuleType) -> Any:
    """A whole number of pixels uniform in 0 .. 2 * padding."""
    return xp.minimum(xp.floor(u * (2 * padding + 1)), 2 * padding)


def between(u: Any, low: float, high: float) -> Any:
    """The point u of the way from low to high."""
    return low + u * (high - low)


def hole(u: Any, height: int, width: int, tall: Any, wide: Any, xp: ModuleType) -> tuple[Any, Any, Any, Any]:
    """(top, bottom, left, right) in whole pixels of a box around a uniform centre, cut at the border; 2 uniforms."""
    y, x = xp.floor(u[0] * height), xp.floor(u[1] * width)
    top, left = xp.floor(y - tall / 2 + 0.5), xp.floor(x - wide / 2 + 0.5)
    return (xp.clip(top, 0, height), xp.clip(top + xp.floor(tall), 0, height),
            xp.clip(left, 0, width), xp.clip(left + xp.floor(wide), 0, width))
