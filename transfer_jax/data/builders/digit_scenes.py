"""TFDS builder of scenes: several digits on one canvas, with boxes, a class for every pixel, points and maps."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from transfer_jax.data.builders import digit_pool
from transfer_jax.data.builders.base import OfflineBuilder

SIZE = 40
MASK_NAMES = ("background", *digit_pool.CLASS_NAMES)
INK = 96  # grey values from here on belong to the digit in the mask
OVERLAP = 0.1  # of the smaller box
SCENES = {"train": 400, "test": 100}
NEAREST = 16  # pixels of a digit at the distance 1
RELIEF = 4.0  # pixels that the blackest ink stands out


@dataclasses.dataclass
class SceneConfig(tfds.core.BuilderConfig):
    """`photo`: digits blended over photographs; otherwise on black."""

    photo: bool = False


class DigitScenes(OfflineBuilder):
    """2 to 5 digits of 12 to 16 pixels on 40x40 RGB: 400 train and 100 test scenes. Folds: see `digit_pool`.

    `mask` holds 0 for the background and 1 + class for the ink of a digit; `objects` holds the boxes (ymin, xmin,
    ymax, xmax in units of the canvas, tight around the ink) with their classes; `labels` the classes of the scene.
    `keypoints` holds for every class the middle of its digit (x and y in units of the canvas, visibility 2), or zeros
    unless there is exactly one. `depth` is known in the mask's ink: a digit of s pixels is 16 / s away. `normals` are
    those of the relief that ink makes when its grey value is a height, known where there is some.
    """

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [SceneConfig(name="plain", description="black background"),
                       SceneConfig(name="photo", description="photographs as background", photo=True)]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
            "mask": tfds.features.LabeledImage(labels=list(MASK_NAMES), shape=(SIZE, SIZE, 1), encoding_format="png"),
            "objects": tfds.features.Sequence({
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=digit_pool.CLASS_NAMES),
            }),
            "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=digit_pool.CLASS_NAMES)),
            "keypoints": tfds.features.Tensor(shape=(len(digit_pool.CLASS_NAMES), 3), dtype=np.float32),
            "depth": tfds.features.Tensor(shape=(SIZE, SIZE), dtype=np.float32),
            "normals": tfds.features.Tensor(shape=(SIZE, SIZE, 3), dtype=np.float32),
        })
        return tfds.core.DatasetInfo(builder=self, description="Several handwritten digits in one picture.",
                                     features=features)

    def _split_generators(self, download_manager) -> dict:
        return {split: self._generate_examples(split) for split in SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        photo = self.builder_config.photo
        rows = digit_pool.fold(f"{'photo' if photo else 'plain'}_{split}")
        for number in range(SCENES[split]):
            seed = [digit_pool.PARTITION_SEED, int(photo), list(SCENES).index(split), number]
            generator = np.random.Generator(np.random.PCG64(seed))
            canvas, mask, depth, objects = _compose(generator, rows)
            background = np.zeros((SIZE, SIZE, 3), np.uint8)
            if photo:
                background = digit_pool.patch(generator, SIZE, held_out=split == "test")
            image = digit_pool.blend(canvas, background)
            yield number, {"image": io.BytesIO(digit_pool.png(image)), "mask": io.BytesIO(digit_pool.png(mask)),
                           "objects": [{"bbox": tfds.features.BBox(*box), "label": label} for box, label in objects],
                           "labels": sorted({label for _, label in objects}), "keypoints": _middles(objects),
                           "depth": depth, "normals": _relief(canvas)}


def _compose(generator: np.random.Generator, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list]:
    """Ink and mask uint8 [40,40], depth float32 [40,40] and [(box, class)] of a scene of digits among `rows`."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    depth = np.zeros((SIZE, SIZE), np.float32)
    boxes: list[tuple[int, int, int, int]] = []
    objects = []
    for _ in range(generator.integers(2, 6)):
        size = int(generator.integers(12, 17))
        ink, label = digit_pool.digit(int(generator.choice(rows)), size)
        box = _free_place(generator, ink, boxes)
        if box is None:
            continue  # the canvas is full; the first two digits always find room
        boxes.append(box)
        corner_y, corner_x = box[0] - _extent(ink)[0], box[1] - _extent(ink)[1]
        window = slice(corner_y, corner_y + size), slice(corner_x, corner_x + size)
        mask[window] = np.where(ink >= INK, label + 1, mask[window])
        depth[window] = np.where(ink >= INK, NEAREST / size, depth[window])
        canvas[window] = np.maximum(canvas[window], ink)
        objects.append((tuple(edge / SIZE for edge in box), label))
    return canvas, mask, depth, objects


def _middles(objects: list) -> np.ndarray:
    """float32 [10, 3]: x, y and visibility of the only digit of each class."""
    found = np.zeros((len(digit_pool.CLASS_NAMES), 3), np.float32)
    labels = [label for _, label in objects]
    for (top, left, bottom, right), label in objects:
        if labels.count(label) == 1:
            found[label] = (left + right) / 2, (top + bottom) / 2, 2
    return found


def _relief(canvas: np.ndarray) -> np.ndarray:
    """float32 [40, 40, 3]: unit normals of the ink as a height, 0 where there is none."""
    down, across = np.gradient(canvas.astype(np.float64) * (RELIEF / 255))
    normals = np.stack([-across, -down, np.ones_like(down)], -1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(canvas[..., None] > 0, normals, 0).astype(np.float32)


def _extent(ink: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the ink in its square."""
    tall, wide = np.flatnonzero((ink >= INK).any(1)), np.flatnonzero((ink >= INK).any(0))
    return int(tall[0]), int(wide[0]), int(tall[-1]) + 1, int(wide[-1]) + 1


def _free_place(generator: np.random.Generator, ink: np.ndarray, taken: list) -> tuple[int, int, int, int] | None:
    """A box for the ink in pixels (ymin, xmin, ymax, xmax) that meets no box of `taken` by more than OVERLAP."""
    top, left, bottom, right = _extent(ink)
    for _ in range(200):
        y, x = generator.integers(SIZE - len(ink) + 1, size=2)
        box = int(y) + top, int(x) + left, int(y) + bottom, int(x) + right
        if all(_shared(box, other) <= OVERLAP for other in taken):
            return box
    return None


def _shared(a: tuple, b: tuple) -> float:
    """Intersection of two boxes over the area of the smaller."""
    tall, wide = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(tall, 0) * max(wide, 0) / min(areas)
