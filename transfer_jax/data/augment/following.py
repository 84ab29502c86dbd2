"""How all that lies on an image follows it: masks, boxes, points, and maps of depth and of normals.

One form for host and device, from the same random numbers as the image's. `draw` gives uniforms of a shape, the first
that the augmentation of the image draws too. Maps go where an augmentation takes a mask that numbers the pixels, so
they have the value of the nearest pixel, and 0, not known, where there is none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from transfer_jax.core.errors import unknown
from transfer_jax.core.spec import Component
from transfer_jax.data.augment import boxes, maps, points

MAPS = ("depth", "normals")
ENTRIES = ("image", "mask", "boxes", "keypoints", *MAPS)
NOWHERE = -1  # the number of a pixel that comes from outside


@dataclass(frozen=True)
class Following:
    """How the rest follows one augmentation; None: it stays where it is.

    Attributes:
      boxes, points: new boxes or points. values: new depths and normals, beside their place.
      moves: whether pixels move at all. fill: the class of pixels from outside; None: there are none.
    """

    boxes: Callable | None = None
    points: Callable | None = None
    values: Callable | None = None
    moves: bool = False
    fill: int | None = None

    def __call__(self, example: Mapping[str, Any], image: Callable, draw: boxes.Draw, xp: ModuleType) -> dict[str, Any]:
        """`example` augmented; `image`: (image, mask or None, further arguments) -> both augmented."""
        size, new = example["image"].shape[:2], dict(example)
        for key, move in (("boxes", self.boxes), ("keypoints", self.points)):
            if key in example and move is not None:
                new[key] = move(example[key], draw, size, xp)
        held = [key for key in MAPS if key in example] if self.moves else []
        if not held:
            new["image"], mask = image(example["image"], example.get("mask"))
            return new | ({} if mask is None else {"mask": mask})
        places = xp.arange(size[0] * size[1], dtype=xp.int32).reshape(size)
        new["image"], places = image(example["image"], places, **({} if self.fill is None else {"mask_fill": NOWHERE}))
        for key in (*held, *(["mask"] if "mask" in example else [])):
            new[key] = _gathered(example[key], places, 0 if key in MAPS else self.fill or 0, xp)
        if self.values is not None:
            new |= self.values({key: new[key] for key in held}, draw, size, xp)
        return new


def _gathered(values: Any, places: Any, outside: int, xp: ModuleType) -> Any:
    """The values [H, W, ...] of the pixels that `places` [h, w] numbers."""
    rows = values.reshape(-1, *values.shape[2:])
    found = xp.take(rows, xp.maximum(places, 0), axis=0)
    there = (places >= 0).reshape(*places.shape, *[1] * (values.ndim - 2))
    return xp.where(there, found, xp.asarray(outside, values.dtype))


def follow(component: Component, function: Callable, names: tuple[str, ...], where: str) -> Following:
    """How the rest follows the augmentation `function` of this component; `names`: of the keypoints."""
    arguments = component.arguments
    pairs = arguments.pop("pairs", ())
    for name in (name for pair in pairs for name in pair):
        if name not in names:
            raise unknown("keypoint", name, names, f"{where}.pairs")
    fill = inspect.signature(function).parameters.get("mask_fill")

    def bound(moves: Mapping[str, Callable], **more: Any) -> Callable | None:
        return functools.partial(moves[component.kind], **arguments, **more) if component.kind in moves else None

    turned = {"order": points.exchanged(names, pairs)} if component.kind == "flip" and names else {}
    return Following(bound(boxes.MOVES), bound(points.MOVES, **turned), bound(maps.VALUES),
                     component.kind in boxes.MOVES, arguments.get("mask_fill", fill.default) if fill else None)


def trimmed(example: Mapping[str, Any], xp: ModuleType) -> dict[str, Any]:
    """Boxes cut at the border of the image, and points beyond it no longer known."""
    new, size = dict(example), example["image"].shape[:2]
    if "boxes" in new:
        new["boxes"] = boxes.cut(new["boxes"], size, xp)
    if "keypoints" in new:
        new["keypoints"] = points.cut(new["keypoints"], xp)
    return new
