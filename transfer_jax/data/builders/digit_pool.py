"""scikit-learn's 1,797 handwritten digits, cut once and for all into folds that no two data sets may mix.

The data (Alpaydin & Kaynak 1998, UCI; 8x8 pixels, grey values 0..16) come with scikit-learn, as do the two
photographs (china.jpg, flower.jpg) that serve as backgrounds.

| fold          | per class | digits | used by                                                       |
|---------------|-----------|--------|---------------------------------------------------------------|
| `plain_train` | 80        | 800    | `digits` train; train scenes of `digit_scenes/plain`          |
| `plain_test`  | 14 to 23  | 197    | `digits` test; test scenes of `digit_scenes/plain`            |
| `photo_train` | 60        | 600    | `digits_photo` train; train scenes of `digit_scenes/photo`    |
| `photo_test`  | 20        | 200    | `digits_photo` test; test scenes of `digit_scenes/photo`      |

So nothing that is trained on, in any of the data sets, holds a digit of any test split, and the plain and the photo
domain share no digit. The photographs are cut into vertical bands 80 pixels wide; every fourth band gives backgrounds
to test images only.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image

CLASS_NAMES = tuple("0123456789")
FOLDS = {"plain_train": slice(0, 80), "photo_train": slice(80, 140), "photo_test": slice(140, 160),
         "plain_test": slice(160, None)}
PARTITION_SEED = 20240
BAND = 80


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # 2 seconds to import, and needed only while a data set is prepared

    found = datasets.load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int32)


def fold(name: str) -> np.ndarray:
    """Rows of scikit-learn's digits in the fold, ascending; int64."""
    labels = _digits()[1]
    generator = np.random.Generator(np.random.PCG64(PARTITION_SEED))
    rows = []
    for number in range(10):
        members = np.flatnonzero(labels == number)
        rows.append(members[np.argsort(generator.random(len(members)))][FOLDS[name]])
    return np.sort(np.concatenate(rows))


def digit(row: int, size: int) -> tuple[np.ndarray, int]:
    """The digit at `row` enlarged to uint8 [size,size] by bicubic interpolation, and its class."""
    images, labels = _digits()
    picture = Image.fromarray(images[row]).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture), int(labels[row])


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    from sklearn import datasets

    return tuple(datasets.load_sample_images().images)


def patch(generator: np.random.Generator, size: int, held_out: bool) -> np.ndarray:
    """A random RGB patch uint8 [size,size,3] of the photographs: a square window of 1 to 2 times `size`, shrunk.

    `held_out` chooses between the bands for test images and those for training images.
    """
    photograph = _photographs()[generator.integers(len(_photographs()))]
    height, width = photograph.shape[:2]
    window = int(min(BAND, generator.integers(size, 2 * size + 1)))
    bands = [band for band in range(width // BAND) if (band % 4 == 1) == held_out]
    left = bands[generator.integers(len(bands))] * BAND + int(generator.integers(BAND - window + 1))
    top = int(generator.integers(height - window + 1))
    crop = Image.fromarray(photograph[top:top + window, left:left + window])
    return np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))


def blend(ink: np.ndarray, background: np.ndarray) -> np.ndarray:
    """|background - ink| per channel: how MNIST-M was made (Ganin & Lempitsky 2015, section 5). uint8 [H,W,3]."""
    return np.abs(background.astype(np.int16) - ink[..., None]).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """The PNG file of uint8 [H,W] or [H,W,3], as bytes."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
