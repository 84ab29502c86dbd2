"""What `predict` writes where the answer is not one class: several classes, points, maps, images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transfer_jax.core.errors import UserError

Answers = Sequence[tuple[Path, Mapping[str, np.ndarray]]]


def tag_rows(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row an image: path, the classes that it shows with ';' between them, and the probability of every class."""
    return [{"path": str(path), "classes": ";".join(name for name, yes in zip(names, one["prediction"], strict=True)
                                                    if yes),
             **{f"p({name})": float(p) for name, p in zip(names, one["probabilities"], strict=True)}}
            for path, one in answers]


def point_rows(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row an image: path, and x, y (in units of what the network saw of it) and share of the heat map of every
    point."""
    return [{"path": str(path), **{f"{name}_{part}": float(value)
                                   for name, row in zip(names, one["prediction"], strict=True)
                                   for part, value in zip(("x", "y", "share"), row, strict=True)}}
            for path, one in answers]


def save_map(path: Path, values: np.ndarray, description: Mapping[str, Any]) -> None:
    """float32 numbers as .npy."""
    del description
    np.save(path.with_suffix(".npy"), values.astype(np.float32))


def save_image(path: Path, values: np.ndarray, description: Mapping[str, Any]) -> None:
    """What the network made of the image, its normalisation undone, as PNG."""
    mean, std = (np.asarray(description[key], np.float32) for key in ("mean", "std"))
    pixels = np.rint(np.clip(values * std + mean, 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path.with_suffix(".png"))


# By `TaskKind.answers`: rows of a table, or a file an image.
ROWS: dict[str, Callable[[Answers, Sequence[str]], list[dict[str, Any]]]] = {"tags": tag_rows, "points": point_rows}
FILES: dict[str, Callable[[Path, np.ndarray, Mapping[str, Any]], None]] = {
    "depths": save_map, "normals": save_map, "images": save_image}


def write_files(out: Path | None, answers: Answers, what: str, description: Mapping[str, Any]) -> None:
    """A file an image in the folder `out`: `what` is a key of `FILES`, `description` the preprocessing."""
    if out is None or out.suffix:
        raise UserError(f"the model answers with {what}, a file for each image; give a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    for number, (path, found) in enumerate(answers):
        FILES[what](out / f"{number:05d}_{path.stem}.out", found["prediction"], description)
    print(f"{len(answers)} {what}: {out}")
