"""Augmentations of decoded files on the host, with Pillow and numpy: names and parameters as in device.py.

Each takes `image` uint8 [H,W,C], `mask` int32 [H,W] or None and a numpy Generator that belongs to the example alone,
and returns the new pair.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from transfer_jax.data.augment import geometry

Pair = tuple[np.ndarray, np.ndarray | None]
Generator = np.random.Generator


def random_resized_crop(image: np.ndarray, mask: np.ndarray | None, generator: Generator,
                        size: tuple[int, int] | None = None, *, scale: tuple[float, float] = (0.08, 1.0),
                        ratio: tuple[float, float] = (0.75, 4 / 3)) -> Pair:
    """A window of random area and aspect (Szegedy et al. 2015), resized to `size` (the stream's image size)."""
    height, width = image.shape[:2]
    tall, wide = size or (height, width)
    top, left, down, right = geometry.crop_window(generator.random(4), height, width, scale, ratio, np)
    box = (left, top, left + right, top + down)
    picture = _picture(image).resize((wide, tall), Image.Resampling.BILINEAR, box=box)
    if mask is None:
        return _array(picture), None
    shrunk = Image.fromarray(mask).resize((wide, tall), Image.Resampling.NEAREST, box=box)
    return _array(picture), np.asarray(shrunk)


def crop(image: np.ndarray, mask: np.ndarray | None, generator: Generator, *, padding: int = 4, fill: float = 0.0,
         mask_fill: int = 0) -> Pair:
    """Pads by `padding` pixels of `fill` on all sides and cuts a random window of the old size (He et al. 2016)."""
    height, width = image.shape[:2]
    top, left = (int(value) for value in geometry.shift(generator.random(2), padding, np))
    border = ((padding, padding), (padding, padding))
    padded = np.pad(image, (*border, (0, 0)), constant_values=round(fill * 255))
    image = padded[top:top + height, left:left + width]
    if mask is None:
        return image, None
    return image, np.pad(mask, border, constant_values=mask_fill)[top:top + height, left:left + width]


def flip(image: np.ndarray, mask: np.ndarray | None, generator: Generator, *, probability: float = 0.5,
         pairs: tuple[tuple[str, str], ...] = ()) -> Pair:
    """Mirrors left and right; `pairs` names keypoints that then change places, (("left eye", "right eye"),)."""
    if generator.random() >= probability:
        return image, mask
    return image[:, ::-1], None if mask is None else mask[:, ::-1]


def scale(image: np.ndarray, mask: np.ndarray | None, generator: Generator, *, low: float = 0.8, high: float = 1.2,
          fill: float = 0.0, mask_fill: int = 0) -> Pair:
    """Enlarges about the centre by a factor uniform in [low, high]; what comes in from outside is `fill`."""
    factor = float(geometry.between(generator.random(), low, high))
    return _warp(image, mask, (1 / factor, 0.0, 0.0, 1 / factor), fill, mask_fill)


def rotation(image: np.ndarray, mask: np.ndarray | None, generator: Generator, *, degrees: float = 15.0,
             fill: float = 0.0, mask_fill: int = 0) -> Pair:
    """Turns about the centre by an angle uniform in [-degrees, degrees], counter-clockwise, bilinear."""
    angle = math.radians(geometry.between(generator.random(), -degrees, degrees))
    return _warp(image, mask, (math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)), fill, mask_fill)


def colour_jitter(image: np.ndarray, mask: np.ndarray | None, generator: Generator, *, brightness: float = 0.4,
                  contrast: float = 0.4, saturation: float = 0.4) -> Pair:
    """Brightness, contrast and saturation times factors uniform in 1 -+ the given amounts, in this order, clipped."""
    factors = geometry.between(generator.random(3, dtype=np.float32), -1.0, 1.0)
    values = np.clip(image.astype(np.float32) * np.float32((1 + factors[0] * brightness) / 255), 0, 1)
    mean = _luminance(values).mean()
    values = np.clip(mean + (values - mean) * (1 + factors[1] * contrast), 0, 1)
    grey = _luminance(values)
    return _bytes(grey + (values - grey) * (1 + factors[2] * saturation)), mask


def noise(image: np.ndarray, mask: np.ndarray | None, generator: Generator, *, std: float = 0.05) -> Pair:
    """Adds independent Gaussian noise to every value, clipped to [0, 1]."""
    values = image.astype(np.float32) * np.float32(1 / 255)
    return _bytes(values + np.float32(std) * generator.standard_normal(image.shape, dtype=np.float32)), mask


def cutout(image: np.ndarray, mask: np.ndarray | None, generator: Generator, *, size: float = 0.5,
           fill: float = 0.5) -> Pair:
    """Fills a square of side `size` times the shorter side around a random centre (DeVries & Taylor 2017).

    The mask keeps what is hidden."""
    height, width = image.shape[:2]
    side = round(size * min(height, width))
    edges = geometry.hole(generator.random(2), height, width, side, side, np)
    top, bottom, left, right = (int(edge) for edge in edges)
    image = image.copy()
    image[top:bottom, left:right] = round(fill * 255)
    return image, mask


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _array(picture: Image.Image) -> np.ndarray:
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _luminance(values: np.ndarray) -> np.ndarray:
    if values.shape[-1] != 3:
        return values
    return (values @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def _warp(image: np.ndarray, mask: np.ndarray | None, matrix: tuple[float, float, float, float], fill: float,
          mask_fill: int) -> Pair:
    """`matrix` (xx, xy, yx, yy) takes output offsets from the centre to input offsets."""
    height, width = image.shape[:2]
    xx, xy, yx, yy = matrix
    x, y = width / 2, height / 2
    affine = (xx, xy, x - xx * x - xy * y, yx, yy, y - yx * x - yy * y)
    level = round(fill * 255)
    picture = _picture(image).transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR,
                                        fillcolor=level if image.shape[2] == 1 else (level,) * image.shape[2])
    if mask is None:
        return _array(picture), None
    turned = Image.fromarray(mask).transform((width, height), Image.Transform.AFFINE, affine,
                                             Image.Resampling.NEAREST, fillcolor=mask_fill)
    return _array(picture), np.asarray(turned)
