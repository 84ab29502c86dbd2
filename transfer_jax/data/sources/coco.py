"""Images with boxes in COCO's format: a folder of images and one JSON file of annotations a split."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data.dataset import Dataset, FileDataset
from transfer_jax.data.sources.locations import need_file


class BoxFiles(FileDataset):
    """Image files with boxes float32 [k, 4] in units of the image, and their classes int32 [k]."""

    def __init__(self, paths: list[Path], boxes: list[np.ndarray], labels: list[np.ndarray], names: tuple[str, ...]):
        super().__init__(paths, None, ())
        self._boxes, self._box_labels, self.box_class_names = boxes, labels, names

    def load(self, row: int) -> dict[str, Any]:
        return {**super().load(row), "boxes": self._boxes[row], "box_labels": self._box_labels[row]}


def coco_source(*, images: str | dict[str, str], annotations: dict[str, str]) -> dict[str, Dataset]:
    """Splits from COCO's JSON: `annotations` names a file for every split, `images` the folder of all or of each.

    Classes are COCO's categories in the order of their ids. Images without an object are kept, crowds are left out.
    """
    return {split: _part(folder, file) for split, (folder, file) in folders_of(images, annotations, "coco").items()}


def folders_of(images: str | dict[str, str], annotations: dict[str, str], kind: str) -> dict[str, tuple[Path, Path]]:
    """Split -> its folder of images and its file of annotations."""
    if not annotations:
        raise UserError(f"a data set of kind {kind!r} needs 'annotations', such as {{'train': 'train.json'}}")
    folders = dict.fromkeys(annotations, images) if isinstance(images, str) else images
    for split in annotations:
        if split not in folders:
            raise UserError(f"a data set of kind {kind!r} has annotations of {split!r}, but 'images' no folder for it")
    return {split: (Path(folders[split]).expanduser(), Path(file).expanduser()) for split, file in annotations.items()}


def _part(folder: Path, file: Path) -> Dataset:
    need_file(file.parent, file.name)
    try:
        content = json.loads(file.read_text())
        kinds = {kind["id"]: number for number, kind in enumerate(sorted(content["categories"], key=lambda k: k["id"]))}
        names = tuple(str(kind["name"]) for kind in sorted(content["categories"], key=lambda k: k["id"]))
        found: dict[int, list[tuple]] = defaultdict(list)
        for one in content.get("annotations", ()):
            if not one.get("iscrowd", 0):
                found[one["image_id"]].append((*one["bbox"], kinds[one["category_id"]]))
        pictures = sorted(content["images"], key=lambda image: image["id"])
        rows = [_units(found[image["id"]], image["height"], image["width"]) for image in pictures]
        paths = [folder / image["file_name"] for image in pictures]
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{str(file)!r} is no whole COCO file of objects ({type(error).__name__}: {error}); mend or "
                        f"replace it") from error
    return BoxFiles(paths, [row[:, :4] for row in rows], [row[:, 4].astype(np.int32) for row in rows], names)


def _units(objects: list[tuple], height: int, width: int) -> np.ndarray:
    """COCO's (x, y, width, height, class) in pixels -> float32 [k, 5]: ymin, xmin, ymax, xmax in units, class."""
    x, y, wide, tall, kind = np.array(objects, np.float32).reshape(-1, 5).T
    return np.stack([y / height, x / width, (y + tall) / height, (x + wide) / width, kind], -1)
