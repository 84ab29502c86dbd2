"""From an encoded image to what the network sees: one description shared by training, evaluation and prediction."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data.decoding import decode_image, resize, resize_mask, set_channels
from transfer_jax.data.spec import StreamSpec


def preprocessing(spec: StreamSpec) -> dict[str, Any]:
    """The part of a stream that must travel with the weights; plain JSON types."""
    def listed(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {"image_size": listed(spec.image_size), "resize": listed(spec.resize), "fit": spec.fit,
            "interpolation": spec.interpolation, "channels": spec.channels, "mean": listed(spec.mean),
            "std": listed(spec.std)}


def prepare_image(image: np.ndarray, description: Mapping[str, Any], name: str = "") -> np.ndarray:
    """Decoded uint8 [H,W,C] -> uint8 of the described channels and size."""
    image = set_channels(image, description["channels"], name)
    if description["image_size"] is None:
        return image
    return resize(image, tuple(description["image_size"]), description["interpolation"], description["fit"],
                  description.get("resize"))


def prepare_mask(mask: np.ndarray, description: Mapping[str, Any]) -> np.ndarray:
    """int32 [H,W] -> int32 on the same window and size as `prepare_image`."""
    if description["image_size"] is None:
        return mask
    return resize_mask(mask, tuple(description["image_size"]), description["fit"], description.get("resize"))


def normalise(image: Any, description: Mapping[str, Any], xp: ModuleType = np) -> Any:
    """float32 [..., H, W, C] in [0, 1] -> (image - mean) / std, as one multiplication and addition."""
    mean, std = (np.asarray(description[key], np.float64) for key in ("mean", "std"))
    return image * xp.asarray((1 / std).astype(np.float32)) - xp.asarray((mean / std).astype(np.float32))


def check_channels(description: Mapping[str, Any], channels: int, where: str) -> None:
    """Raises unless mean and std are single numbers or one per channel."""
    for key in ("mean", "std"):
        value = description[key]
        if np.ndim(value) and len(value) != channels:
            raise UserError(f"{where}: {key} has {len(value)} values, but the images have {channels} channels; "
                            "give one number or one per channel")


def preprocess_image(source: str | os.PathLike | bytes, description: Mapping[str, Any], name: str = "") -> np.ndarray:
    """A file or its bytes -> float32 [H,W,C], exactly what an evaluation batch of the stream holds.

    Raises UnreadableImage naming the file.
    """
    name = name or ("an image" if isinstance(source, bytes) else str(source))
    image = prepare_image(decode_image(source, name), description, name)
    return normalise(image.astype(np.float32) * np.float32(1 / 255), description).astype(np.float32)
