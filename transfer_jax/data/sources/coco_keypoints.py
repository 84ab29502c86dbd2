"""Keypoints of persons (or other objects) in COCO's format: one example an object, the window around its box."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data.dataset import Dataset, FileDataset
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.sources.coco import folders_of
from transfer_jax.data.sources.locations import need_file


class Instance(NamedTuple):
    """An object: file of its image and its number among the images; box (x, y, width, height), area and keypoints
    [K, 3] in pixels of the image."""

    file: Path
    image: int
    box: tuple[float, float, float, float]
    area: float
    points: np.ndarray


class Instances(FileDataset):
    """`image`, the window of an object; `keypoints` float32 [K, 3] in units of it; `place`, see `targets.py`."""

    def __init__(self, instances: list[Instance], points: tuple[str, ...], margin: float):
        super().__init__([instance.file for instance in instances], None, (), columns={"keypoints": points})
        self._instances, self._margin = instances, margin

    def load(self, row: int) -> dict[str, Any]:
        one, image = self._instances[row], super().load(row)["image"]
        left, top, right, bottom = window = window_around(one.box, self._margin)
        shown = _window(image, window)
        if shown is None:
            raise UnreadableImage(f"{self.name_of(row)}: its box {one.box} lies outside the image of "
                                  f"{image.shape[:2]}; mend its annotation")
        place = (one.points[:, :2] - [left, top]) / [right - left, bottom - top]
        return {"image": shown, "keypoints": np.column_stack([place, one.points[:, 2]]).astype(np.float32),
                "place": np.float32([left, top, right - left, bottom - top, one.area, one.image])}

    def name_of(self, row: int) -> str:
        x, y = self._instances[row].box[:2]
        return f"{self._paths[row]}, the object at x {x:g}, y {y:g}"

    def stamp(self, row: int) -> bytes:
        one = self._instances[row]
        return super().stamp(row) + repr((one.box, self._margin)).encode() + one.points.tobytes()


def coco_keypoints_source(*, images: str | dict[str, str], annotations: dict[str, str], category: str | None = None,
                          margin: float = 1.25) -> dict[str, Dataset]:
    """Splits from COCO's JSON such as person_keypoints_train2017.json: `annotations` names a file for every split,
    `images` the folder of all or of each.

    An example is an object with a known point, in a window `margin` times as wide and as high as its box, black beyond
    the image (Xiao, Wu & Wei 2018, "Simple baselines for human pose estimation", section 3). Crowds are left out.

    Args:
        category: the one whose points these are; None: the only one that has some.
    """
    if not margin > 0:
        raise UserError(f"data of kind 'coco_keypoints': margin={margin} must be positive")
    return {split: _part(folder, file, category, margin)
            for split, (folder, file) in folders_of(images, annotations, "coco_keypoints").items()}


def _part(folder: Path, file: Path, category: str | None, margin: float) -> Dataset:
    need_file(file.parent, file.name)
    try:
        content = json.loads(file.read_text())
        kinds = [kind for kind in content["categories"] if kind.get("keypoints")]
        chosen = [kind for kind in kinds if category is None or kind["name"] == category]
        if len(chosen) != 1:
            names = ", ".join(str(kind["name"]) for kind in kinds)
            raise UserError(f"{str(file)!r} has {len(chosen)} categories with keypoints"
                            + (f" called {category!r}" if category else "")
                            + (f"; there are {names}: give one of them as `category`" if names else
                               "; give a file such as person_keypoints_val2017.json"))
        points = tuple(map(str, chosen[0]["keypoints"]))
        pictures = sorted(content["images"], key=lambda image: image["id"])
        files = {image["id"]: (number, folder / image["file_name"]) for number, image in enumerate(pictures)}
        found = [_instance(one, *files[one["image_id"]], len(points)) for one in content["annotations"]
                 if one["category_id"] == chosen[0]["id"] and not one.get("iscrowd", 0)]
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{str(file)!r} is no whole COCO file of keypoints ({type(error).__name__}: {error}); mend or "
                        f"replace it") from error
    known = sorted((one for one in found if (one.points[:, 2] > 0).any()), key=lambda one: one.image)
    return Instances(known, points, margin)


def _instance(one: dict[str, Any], image: int, file: Path, count: int) -> Instance:
    points = np.array(one["keypoints"], np.float64)
    if len(points) != 3 * count:
        raise ValueError(f"annotation {one.get('id')} has {len(points)} numbers of keypoints, not {3 * count}")
    x, y, width, height = map(float, one["bbox"])
    if not (width > 0 and height > 0):
        raise ValueError(f"annotation {one.get('id')} has a box of {width:g} x {height:g}")
    return Instance(file, image, (x, y, width, height), float(one.get("area", width * height)), points.reshape(-1, 3))


def window_around(box: tuple[float, float, float, float], margin: float) -> tuple[int, int, int, int]:
    """Box (x, y, width, height) -> (left, top, right, bottom), `margin` times as wide and high, whole pixels."""
    x, y, width, height = box
    left, top = (round(start + side / 2 - margin * side / 2) for start, side in ((x, width), (y, height)))
    return left, top, left + max(1, round(margin * width)), top + max(1, round(margin * height))


def _window(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray | None:
    """The pixels of (left, top, right, bottom), black beyond the image; None if nothing of the image is there."""
    left, top, right, bottom = window
    height, width = image.shape[:2]
    inside = image[max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
    if not inside.size:
        return None
    return np.pad(inside, ((max(-top, 0), max(bottom - height, 0)), (max(-left, 0), max(right - width, 0)), (0, 0)))
