"""Answers of an example beside the truth, drawn on or next to its image. Each function returns the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from transfer_jax.experiment.report.style import CLASS_COLORS

SIDE = 120  # pixels, about
LINE = 12  # pixels of a line of text
RIGHT, WRONG, QUIET = "#2a7f3f", "#c0392b", "#8a8a8a"
MOST_TAGS = 9


def tags_picture(image: np.ndarray, true: np.ndarray, found: np.ndarray, names: Mapping[int, str]) -> bytes:
    """The image, and beside it the classes that it shows and those that were answered, the most probable first.

    Args:
      image: uint8 [H, W, C]. true: [K], 1, 0 or -1 (not known). found: float [K], probabilities.
    """
    shown = [k for k in np.argsort(-found, kind="stable") if found[k] >= 0.5 or true[k] > 0][:MOST_TAGS]
    picture = enlarged(image)
    page = Image.new("RGB", (picture.shape[1] + 110, max(picture.shape[0], LINE * len(shown) + 4)), "white")
    page.paste(Image.fromarray(picture), (0, 0))
    draw, left = ImageDraw.Draw(page), picture.shape[1] + 6
    for line, k in enumerate(shown):
        top, wrong = 2 + LINE * line, true[k] >= 0 and (true[k] > 0) != (found[k] >= 0.5)
        color = QUIET if true[k] < 0 else WRONG if wrong else RIGHT
        draw.rectangle((left + 12, top + 1, left + 12 + round(30 * float(found[k])), top + LINE - 3), fill=color)
        draw.rectangle((left + 12, top + 1, left + 42, top + LINE - 3), outline=color)
        if true[k] > 0:
            draw.ellipse((left + 1, top + 2, left + 7, top + 8), fill=color)
        elif true[k] < 0:
            draw.line((left + 1, top + 5, left + 7, top + 5), fill=color, width=2)
        draw.text((left + 46, top - 1), f"{names.get(int(k), str(k))[:7]}: {100 * found[k]:.0f}", fill=color)
    return png(np.asarray(page))


def images_picture(image: np.ndarray, true: np.ndarray, found: np.ndarray, names: Mapping[int, str]) -> bytes:
    """What the network saw, uint8 [H, W, C], and what it made of it."""
    return png(side_by_side([enlarged(true), enlarged(found)]))


def points_picture(image: np.ndarray, true: np.ndarray, found: np.ndarray, names: Mapping[int, str]) -> bytes:
    """Points on their image, one colour each: a ring where it is, a cross where the answer is, a line between them.

    Args:
      image: uint8 [H, W, C]. true: [K, 3], x, y, visibility; those of 0 are left out. found: [K, 3], x, y, share.
    """
    picture = Image.fromarray(enlarged(image, 2 * SIDE))
    draw, size = ImageDraw.Draw(picture), np.array(picture.size)
    for k in np.flatnonzero(true[:, 2] > 0):
        color = CLASS_COLORS[int(k) % len(CLASS_COLORS)]
        (x, y), (u, v) = true[k, :2] * size, found[k, :2] * size
        draw.line((x, y, u, v), fill=color, width=1)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=color, width=2)
        draw.line((u - 4, v - 4, u + 4, v + 4), fill=color, width=2)
        draw.line((u - 4, v + 4, u + 4, v - 4), fill=color, width=2)
        draw.text((min(x + 7, size[0] - 30), y - 6), names.get(int(k), str(k))[:5], fill=color)
    return png(np.asarray(picture))


def depths_picture(image: np.ndarray, true: np.ndarray, found: np.ndarray, names: Mapping[int, str]) -> bytes:
    """The image, its depth and the answer in the same colours, which span both where depth is known; bright is near,
    black not known.

    Args:
      image: uint8 [H, W, C]. true, found: float [H, W].
    """
    known = true > 0
    both = np.concatenate([true[known], found[known]]) if known.any() else found
    low, high = both.min(), both.max()
    tiles = []
    for depth, black in ((true, ~known), (found, np.zeros_like(known))):
        share = np.clip((depth - low) / max(high - low, 1e-6), 0, 1)
        colors = (colormaps["viridis_r"](share)[..., :3] * 255).astype(np.uint8)
        tiles.append(np.where(black[..., None], np.uint8(0), colors))
    return png(side_by_side([enlarged(tile) for tile in (image, *tiles)]))


def normals_picture(image: np.ndarray, true: np.ndarray, found: np.ndarray, names: Mapping[int, str]) -> bytes:
    """The image, its normals and the answer, x, y and z as red, green and blue from -1 to 1; black is not known.

    Args:
      image: uint8 [H, W, C]. true, found: float [H, W, 3].
    """
    tiles = [np.where(normals.any(-1, keepdims=True), np.rint((normals + 1) * 127.5), 0).clip(0, 255).astype(np.uint8)
             for normals in (true, found)]
    return png(side_by_side([enlarged(tile) for tile in (image, *tiles)]))


def enlarged(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [H, W, C] of 1 or 3 channels as RGB, in whole pixels about `side` high."""
    image = np.asarray(image, np.uint8)
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
    factor = max(1, round(side / image.shape[0]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def side_by_side(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures uint8 [H, W, 3] of one height with a grey line between them."""
    gap = np.full((tiles[0].shape[0], 3, 3), 128, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
