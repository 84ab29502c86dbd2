"""How a source wants its images, read from the several forms in which timm and transformers write it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_jax.pretrained.catalog import IMAGENET_MEAN, IMAGENET_STD, Published

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
LARGEST = 2**14  # pixels on a side
# Image processors of transformers that take a bare number for the shorter side, and those that crop by default.
BY_SHORTER_SIDE = ("CLIP", "ConvNext", "Bit", "MobileNet")
CROPPING = ("CLIP", "Bit", "MobileNet", "DeiT")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the network's input.

    image_size: (height, width) that the network sees. resize: what the image is resized to before the centre crop, the
    length of its shorter side or (height, width); None: the image is resized to `image_size` at once, by `fit`:
    'stretch' or 'crop'. With fit 'cover' the image keeps its aspect ratio and just covers the two numbers of `resize`.
    mean, std: of values in [0, 1], per channel.
    """

    image_size: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    fit: str = "crop"
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3

    def __post_init__(self) -> None:
        sides = (*self.image_size, *_sides(self.resize if self.resize is not None else self.image_size))
        if min(sides) < 1 or max(sides) > LARGEST:
            raise ValueError(f"an image of {sides[0]} x {sides[1]} pixels")
        if self.interpolation not in RESAMPLING.values():
            raise ValueError(f"the interpolation {self.interpolation!r}")
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} for {self.channels} channels")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError("a mean or std that is not finite")

    def at(self, image_size: tuple[int, int]) -> Preprocessing:
        """The same for another size of the input: what is cut off stays the same share of the image."""
        if self.resize is None or image_size == self.image_size:
            return dataclasses.replace(self, image_size=image_size)
        shares = [new / old for new, old in zip(image_size, self.image_size, strict=True)]
        if isinstance(self.resize, int):
            resize = max(round(self.resize * max(shares)), *image_size)
        else:
            resize = tuple(max(round(side * share), new) for side, share, new in
                           zip(self.resize, shares, image_size, strict=True))
        return dataclasses.replace(self, image_size=image_size, resize=resize)


def of_torchvision(entry: Published) -> Preprocessing:
    return Preprocessing((entry.crop, entry.crop), entry.resize, "crop", entry.interpolation, entry.mean, entry.std)


def of_timm(told: Mapping[str, Any]) -> Preprocessing:
    """Settings of a `pretrained_cfg`; what is absent has timm's defaults."""
    channels, height, width = map(int, told.get("input_size") or (3, 224, 224))
    mean, std = (_per_channel(told.get(key) or default, channels)
                 for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    interpolation = told.get("interpolation") or "bicubic"
    share = float(told.get("crop_pct") or 0.875)
    # timm draws among several filters in training where the config says so.
    interpolation = "bilinear" if interpolation == "random" else interpolation
    before = tuple(math.floor(side / share) for side in (height, width))
    if told.get("crop_mode") == "squash":
        stretched = before == (height, width)
        return Preprocessing((height, width), None if stretched else before, "stretch" if stretched else "crop",
                             interpolation, mean, std, channels)
    square = height == width
    return Preprocessing((height, width), before[0] if square else before, "crop" if square else "cover", interpolation,
                         mean, std, channels)


def of_transformers(told: Mapping[str, Any]) -> Preprocessing | None:
    """Settings of a `preprocessor_config.json`; None if it is not about images."""
    kind = str(told.get("image_processor_type") or told.get("feature_extractor_type") or "")
    if not told.get("image_mean") or not (told.get("size") or told.get("crop_size")):
        return None
    mean, std = _scaled(told, kind)
    channels = len(mean)
    interpolation = RESAMPLING[told.get("resample", 2)]
    size, crop = told.get("size", told.get("crop_size")), _exact(told.get("crop_size", 224))
    shorter = _shorter(size, kind)
    if kind.startswith("ConvNext") or told.get("crop_pct"):
        side = shorter or _exact(size)[0]
        share = told.get("crop_pct") or 224 / 256
        # Below 384 pixels a part of the image is cut off, from there on it is stretched.
        before, fit = (int(side / share), "crop") if side < 384 else (None, "stretch")
        return Preprocessing((side, side), before, fit, interpolation, mean, std, channels)
    if not told.get("do_center_crop", kind.startswith(CROPPING)) or crop is None:
        exact = (shorter, shorter) if shorter else _exact(size)
        # A shorter side alone leaves images of many shapes; the network sees the centre of them.
        return Preprocessing(exact, None, "crop" if shorter else "stretch", interpolation, mean, std, channels)
    before = shorter or _exact(size)
    if min(map(int.__sub__, _sides(before), crop)) < 0:  # the frame around small images is not reproduced
        before = None
    return Preprocessing(crop, None if before == crop else before, "stretch" if before == crop else "crop",
                         interpolation, mean, std, channels)


def _scaled(told: Mapping[str, Any], kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for values in [0, 1], whatever range the source brings its pixels to."""
    channels = len(told["image_mean"]) if isinstance(told["image_mean"], Sequence) else 3
    mean, std = (_per_channel(told[key], channels) for key in ("image_mean", "image_std"))
    if not told.get("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif kind.startswith("EfficientNet") and told.get("include_top", True):
        std = tuple(value * value for value in std)  # this one divides twice
    largest = 255 * float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 255.0
    return tuple(value / largest for value in mean), tuple(value / largest for value in std)


def _shorter(size: Any, kind: str) -> int | None:
    """The length of the shorter side, if that is what `size` tells; a bare number does for some kinds only."""
    if isinstance(size, bool):
        raise ValueError(f"a size of {size}")
    if isinstance(size, int):
        return size if kind.startswith(BY_SHORTER_SIDE) else None
    return int(size["shortest_edge"]) if "shortest_edge" in size else None


def _exact(value: Any) -> tuple[int, int] | None:
    """(height, width) of a square's side or of a mapping."""
    if isinstance(value, bool):
        raise ValueError(f"a size of {value}")
    if value is None or isinstance(value, int):
        return (value, value) if value else None
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    return int(value["height"]), int(value["width"])


def _sides(resize: int | tuple[int, int]) -> tuple[int, int]:
    return (resize, resize) if isinstance(resize, int) else resize


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),) * channels
