"""Objects and answers of a detection task, drawn on their image."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from transfer_jax.experiment.report.style import CLASS_COLORS


def boxes_picture(image: np.ndarray, true: np.ndarray, found: np.ndarray, names: Mapping[int, str],
                  least: float = 0.3, side: int = 240) -> bytes:
    """PNG of an image, uint8 [H, W, C], twice: with its objects [N, 5], and with the answers [M, 6] whose score is at
    least `least` beside them, one colour a class, each with its name (and score in percent)."""
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
    factor = max(1, round(side / image.shape[0]))
    large = np.asarray(image, np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
    tiles = []
    for rows in (true, found[found[:, 5] >= least]):
        picture = Image.fromarray(large)
        draw = ImageDraw.Draw(picture)
        for row in rows[rows[:, 4] >= 0]:
            kind, color = int(row[4]), CLASS_COLORS[int(row[4]) % len(CLASS_COLORS)]
            top, left, bottom, right = row[:4] * np.tile(large.shape[:2], 2)
            draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=color, width=2)
            text = names.get(kind, str(kind)) + (f" {100 * row[5]:.0f}" if len(row) > 5 else "")
            place = (left + 3, top + 2)
            draw.rectangle(draw.textbbox(place, text), fill=color)
            draw.text(place, text, fill="white")
        tiles += [np.asarray(picture), np.full((large.shape[0], 4, 3), 128, np.uint8)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(tiles[:-1], axis=1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
