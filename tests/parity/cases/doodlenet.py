"""DoodleNet against Keras, after the description in ml5.js's model.json, without its dropout."""

from __future__ import annotations

from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from transfer_jax.models.doodlenet import DoodleNet
from transfer_jax.pretrained.rules import doodlenet

TAPS = doodlenet.keras(DoodleNet()).modules


def _build(keras: Any) -> Any:
    layers = keras.layers
    x = image = keras.Input((28, 28, 1))
    for stage, filters in enumerate((16, 32, 64)):
        for number in (2 * stage, 2 * stage + 1):
            name = f"conv2d_{number}" if number else "conv2d"
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
        x = layers.MaxPooling2D(2, name=f"max_pooling2d_{stage}" if stage else "max_pooling2d")(x)
    x = layers.Dense(512, activation="tanh", name="dense")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(CLASSES, name="dense_1")(x))


CASES = [Case("doodlenet", "keras", lambda: as_torch(_build, TAPS.values()), TAPS,
              ("stage1/conv1/kernel", "stage2/conv2/kernel", "head/dense/kernel"), {"dropout": 0.0}, size=28,
              channels=1, smallest=True)]
