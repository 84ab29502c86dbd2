"""Bytes or files -> pixel arrays, with Pillow. Whatever the file is, the answer is uint8 [H,W,1 or 3]."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from transfer_jax.core.errors import UserError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Resize = int | Sequence[int] | None  # the shorter side, or (height, width)
_DEEP_MODES = ("I", "F")  # and all "I;16..." variants: 16 or 32 bits per pixel


class UnreadableImage(UserError):
    """An example that cannot be decoded; the message names it."""


def decode_image(source: str | os.PathLike | bytes, name: str = "") -> np.ndarray:
    """Decodes a file (path) or its bytes to uint8 [H,W,1] (grey) or [H,W,3] (RGB).

    The EXIF orientation is applied. Palettes become RGB, transparency is dropped, 16-bit grey keeps its high byte.
    Raises UnreadableImage naming the file (or `name` for bytes).
    """
    image = open_image(source, name)
    if image.mode.startswith("I;16") or image.mode in _DEEP_MODES:
        return _eight_bits(np.asarray(image))[..., None]
    if image.mode in ("L", "1", "LA", "La"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def decode_mask(source: str | os.PathLike | bytes, name: str = "") -> np.ndarray:
    """Decodes a map of class numbers (grey or palette image: the stored number is the class) to int32 [H,W]."""
    image = open_image(source, name)
    array = np.asarray(image if image.mode != "1" else image.convert("L"))
    if array.ndim == 3:
        raise UnreadableImage(f"the mask {_label(source, name)} has {array.shape[2]} channels; store class numbers in "
                              "a grey or palette PNG")
    return array.astype(np.int32)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str = "bilinear", fit: str = "stretch",
           first: Resize = None) -> np.ndarray:
    """uint8 [H,W,C] -> uint8 [size[0],size[1],C], antialiased when shrinking.

    `fit='stretch'` ignores the aspect ratio; 'crop' keeps it: the largest centred window of the aspect of `size`, or
    with `first` the centre of the image that was resized to that before, as ImageNet's recipes do: one number is the
    length of its shorter side, two are its height and width.
    """
    if image.shape[:2] == tuple(size) and first is None:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    array = np.asarray(_resized(picture, size, INTERPOLATIONS[interpolation], fit, first))
    return array[..., None] if array.ndim == 2 else array


def resize_mask(mask: np.ndarray, size: tuple[int, int], fit: str = "stretch",
                first: Resize = None) -> np.ndarray:
    """int32 [H,W] -> int32 [size]: the class of the nearest pixel, on the same window as `resize`."""
    if mask.shape == tuple(size) and first is None:
        return mask
    picture = Image.fromarray(mask.astype(np.int32))
    return np.asarray(_resized(picture, size, Image.Resampling.NEAREST, fit, first)).astype(np.int32)


def resize_map(values: np.ndarray, description: Mapping[str, Any]) -> np.ndarray:
    """float32 [H,W] or [H,W,C] -> the value of the nearest pixel, on the window and size that `prepare_image` gives."""
    size, fit, first = description["image_size"], description["fit"], description.get("resize")
    if size is None or (values.shape[:2] == tuple(size) and first is None):
        return values
    channels = [np.asarray(_resized(Image.fromarray(one), tuple(size), Image.Resampling.NEAREST, fit, first))
                for one in np.moveaxis(np.atleast_3d(values), -1, 0)]
    return channels[0] if values.ndim == 2 else np.stack(channels, -1)


def _resized(picture: Image.Image, size: tuple[int, int], resampling: Image.Resampling, fit: str,
             first: Resize) -> Image.Image:
    width, height = picture.size
    if fit != "stretch" and first is not None:
        rows, columns = _covering(height, width, first) if fit == "cover" else _resized_shape(height, width, first)
        if (rows, columns) != (height, width):
            picture = picture.resize((columns, rows), resampling)
        # The corner of the window is rounded to a whole number, halves to an even one: as torchvision does.
        top, left = round((rows - size[0]) / 2), round((columns - size[1]) / 2)
        return picture.crop((left, top, left + size[1], top + size[0]))
    box = centre_box(height, width, size) if fit == "crop" else (0, 0, width, height)
    return picture.resize((size[1], size[0]), resampling, box=box)


def _resized_shape(height: int, width: int, first: int | Sequence[int]) -> tuple[int, int]:
    """(height, width): two numbers as they are; one for the shorter side, the longer one cut to a whole number."""
    if not isinstance(first, int):
        return tuple(first)
    longer = int(first * max(height, width) / min(height, width))
    return (first, longer) if height <= width else (longer, first)


def _covering(height: int, width: int, least: Sequence[int]) -> tuple[int, int]:
    """(height, width) with the aspect ratio of the image, just large enough to cover `least`; rounded as timm does."""
    ratio = min(height / least[0], width / least[1])
    return round(height / ratio), round(width / ratio)


def centre_box(height: int, width: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest centred window with the aspect ratio of `size` (height, width)."""
    scale = min(height / size[0], width / size[1])
    tall, wide = size[0] * scale, size[1] * scale
    left, top = (width - wide) / 2, (height - tall) / 2
    return left, top, left + wide, top + tall


def window_of(size: tuple[int, int], description: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """(top, left, bottom, right), in units of an image of this height and width, of what `resize` shows of it."""
    wanted, fit, first = description["image_size"], description["fit"], description.get("resize")
    if wanted is None or fit == "stretch":
        return 0.0, 0.0, 1.0, 1.0
    if first is None:
        left, top, right, bottom = centre_box(*size, wanted)
        return top / size[0], left / size[1], bottom / size[0], right / size[1]
    rows, columns = _covering(*size, first) if fit == "cover" else _resized_shape(*size, first)
    top, left = round((rows - wanted[0]) / 2), round((columns - wanted[1]) / 2)
    return top / rows, left / columns, (top + wanted[0]) / rows, (left + wanted[1]) / columns


def set_channels(image: np.ndarray, channels: int | None, name: str = "") -> np.ndarray:
    """uint8 [H,W,C] with `channels` channels: grey is repeated; RGB becomes luminance (ITU-R 601); None keeps C."""
    present = image.shape[2]
    if channels is None or present == channels:
        return image
    if present == 1:
        return np.repeat(image, channels, axis=2)
    if present == 3 and channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    raise UserError(f"{name or 'an image'} has {present} channels and cannot be given {channels}; "
                    "set channels to 1, 3 or None")


def open_image(source: str | os.PathLike | bytes, name: str = "") -> Image.Image:
    """A decoded picture, turned as its EXIF orientation says. Raises UnreadableImage naming the file."""
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        image = Image.open(io.BytesIO(data))
        image.load()
        return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise UnreadableImage(f"the image {_label(source, name)} does not exist") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for some broken PNG and TIFF headers.
        reason = "it is damaged or no image" if "cannot identify" in str(error) else str(error)
        raise UnreadableImage(f"cannot read the image {_label(source, name)}: {reason}; mend or remove it, or set "
                              "on_bad_example='skip'") from error


def _label(source: str | os.PathLike | bytes, name: str) -> str:
    return name or ("(bytes)" if isinstance(source, bytes) else str(source))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return np.clip(np.rint(array * 255 if array.max(initial=0) <= 1 else array), 0, 255).astype(np.uint8)
    # Pillow opens 16-bit PNGs as 32-bit integers too; only values above 255 tell them from 8-bit ones.
    return (array >> 8 if array.max(initial=0) > 255 else array).clip(0, 255).astype(np.uint8)
