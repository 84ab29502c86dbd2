"""The format of PASCAL VOC (Everingham et al. 2010): one XML file of objects an image, lists of names as splits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.data.dataset import Dataset, FileDataset
from transfer_jax.data.sources.coco import BoxFiles

CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
           "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
BACKGROUND = "background"
SPLITS = ("train", "val", "trainval", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
LISTS = {"boxes": "Main", "masks": "Segmentation"}


class Annotated(NamedTuple):
    """What a file says of an image: names of its objects, and their boxes float32 [k, 4] in units of the image."""

    names: list[str]
    boxes: np.ndarray


def voc_source(*, path: str, labels: Literal["boxes", "masks"] = "boxes", class_names: tuple[str, ...] | None = None,
               difficult: bool = False) -> dict[str, Dataset]:
    """Splits of a folder such as VOCdevkit/VOC2012: JPEGImages/NAME.jpg and ImageSets/Main/{train,val,...}.txt.

    labels: 'boxes' of Annotations/NAME.xml; or 'masks', SegmentationClass/NAME.png with the lists of
        ImageSets/Segmentation: class 0 is the background, 255 void.
    class_names: of the objects, in the order of their numbers; None: VOC's twenty for masks, and for boxes the names
        that occur in any split, sorted (which for VOC are these).
    difficult: whether boxes marked so are kept, which VOC does not count.

    Raises:
      UserError: naming the file that is missing or damaged, or the class that is not listed.
    """
    root = Path(path).expanduser()
    lists = {split: root / "ImageSets" / LISTS[labels] / f"{split}.txt" for split in SPLITS}
    named = {split: _names(file) for split, file in lists.items() if file.is_file()}
    if not named:
        raise UserError(f"{path!r} has no list of images such as ImageSets/{LISTS[labels]}/train.txt; give as `path` "
                        f"the folder that holds JPEGImages and ImageSets")
    pictures = {split: [_picture(root, name) for name in names] for split, names in named.items()}
    if labels == "masks":
        classes = (BACKGROUND, *(class_names or CLASSES))
        return {split: FileDataset(pictures[split], None, classes, [_mask(root, name) for name in names])
                for split, names in named.items()}
    read = {name: _annotated(root / "Annotations" / f"{name}.xml", difficult)
            for name in dict.fromkeys(name for names in named.values() for name in names)}
    classes = class_names or tuple(sorted({name for one in read.values() for name in one.names}))
    numbers = {image: _numbers(one.names, classes, root / "Annotations" / f"{image}.xml")
               for image, one in read.items()}
    return {split: BoxFiles(pictures[split], [read[name].boxes for name in names], [numbers[name] for name in names],
                            classes) for split, names in named.items()}


def _names(file: Path) -> list[str]:
    """The first word of every line: lists of one class have a second one."""
    return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]


def _picture(root: Path, name: str) -> Path:
    for suffix in SUFFIXES:
        if (root / "JPEGImages" / f"{name}{suffix}").is_file():
            return root / "JPEGImages" / f"{name}{suffix}"
    raise UserError(f"{str(root / 'JPEGImages')!r} holds no image {name!r}, which a list names; complete it")


def _mask(root: Path, name: str) -> Path:
    file = root / "SegmentationClass" / f"{name}.png"
    if not file.is_file():
        raise UserError(f"the mask {str(file)!r} is missing, but a list names it; complete it")
    return file


def _annotated(file: Path, difficult: bool) -> Annotated:
    """Corners are whole pixels that belong to the box, counted from 1."""
    if not file.is_file():
        raise UserError(f"the annotation {str(file)!r} is missing; complete it or take its name from the lists")
    try:
        tree = ElementTree.parse(file).getroot()
        size = np.array([float(tree.findtext(f"size/{side}", "")) for side in ("height", "width")])
        objects = [one for one in tree.findall("object") if difficult or one.findtext("difficult", "0").strip() != "1"]
        corners = [[float(one.findtext(f"bndbox/{edge}", "")) for edge in ("ymin", "xmin", "ymax", "xmax")]
                   for one in objects]
        if (size <= 0).any():
            raise ValueError(f"its size is {size[0]:g} x {size[1]:g}")
        boxes = (np.array(corners).reshape(-1, 4) - [1, 1, 0, 0]) / np.tile(size, 2)
        return Annotated([one.findtext("name", "").strip() for one in objects], boxes.astype(np.float32))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{str(file)!r} is no whole annotation in VOC's format ({error}); mend it") from error


def _numbers(names: list[str], classes: tuple[str, ...], file: Path) -> np.ndarray:
    for name in names:
        if name not in classes:
            raise unknown("class", name, classes, str(file))
    return np.array([classes.index(name) for name in names], np.int32)
