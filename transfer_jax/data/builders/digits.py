"""TFDS builders of the two digit domains: plain, and blended over photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from transfer_jax.data.builders import digit_pool
from transfer_jax.data.builders.base import OfflineBuilder

SIZE = 16


def _info(builder: tfds.core.DatasetBuilder, description: str) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=digit_pool.CLASS_NAMES),
    })
    return tfds.core.DatasetInfo(builder=builder, description=description, features=features,
                                 supervised_keys=("image", "label"))


class Digits(OfflineBuilder):
    """scikit-learn's digits, 16x16 RGB (grey): 800 train, 197 test. The folds are described in `digit_pool`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, "scikit-learn's 8x8 handwritten digits enlarged to 16x16.")

    def _split_generators(self, download_manager) -> dict:
        return {"train": self._generate_examples("plain_train"), "test": self._generate_examples("plain_test")}

    def _generate_examples(self, fold: str) -> Iterator[tuple[int, dict]]:
        for row in digit_pool.fold(fold):
            image, label = digit_pool.digit(row, SIZE)
            yield int(row), {"image": _file(np.repeat(image[..., None], 3, axis=2)), "label": label}


class DigitsPhoto(OfflineBuilder):
    """Other digits blended over patches of photographs, 16x16 RGB: 600 train, 200 test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, "scikit-learn's handwritten digits as |photograph - digit|, the way MNIST-M was made.")

    def _split_generators(self, download_manager) -> dict:
        return {"train": self._generate_examples("photo_train"), "test": self._generate_examples("photo_test")}

    def _generate_examples(self, fold: str) -> Iterator[tuple[int, dict]]:
        for row in digit_pool.fold(fold):
            generator = np.random.Generator(np.random.PCG64([digit_pool.PARTITION_SEED, int(row)]))
            image, label = digit_pool.digit(row, SIZE)
            background = digit_pool.patch(generator, SIZE, held_out=fold.endswith("test"))
            yield int(row), {"image": _file(digit_pool.blend(image, background)), "label": label}


def _file(image: np.ndarray) -> io.BytesIO:
    return io.BytesIO(digit_pool.png(image))
