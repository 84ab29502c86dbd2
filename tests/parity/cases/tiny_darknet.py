"""Tiny Darknet against Keras, after the description in ml5.js's model.json."""

from __future__ import annotations

from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from transfer_jax.models.tiny_darknet import TinyDarknet
from transfer_jax.pretrained.rules import tiny_darknet

TAPS = tiny_darknet.keras(TinyDarknet()).modules
SIDE = 60  # odd at 1/4
# Filters and kernel sizes of the convolutions but the last; 'pool' stands between.
LAYERS = ((16, 3), "pool", (32, 3), "pool", (16, 1), (128, 3), (16, 1), (128, 3), "pool",
          (32, 1), (256, 3), (32, 1), (256, 3), "pool", (64, 1), (512, 3), (64, 1), (512, 3), (128, 1))


def _build(keras: Any) -> Any:
    layers, number = keras.layers, 0
    x = image = keras.Input((SIDE, SIDE, 3))
    for entry in LAYERS:
        if entry == "pool":
            x = layers.MaxPooling2D(2, 2, "same")(x)
            continue
        number += 1
        x = layers.Conv2D(*entry, padding="same", use_bias=False, name=f"conv2d_{number}")(x)
        x = layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=f"batch_normalization_{number}")(x)
        x = layers.LeakyReLU(0.1, name=f"leaky_re_lu_{number}")(x)
    x = layers.Conv2D(CLASSES, 1, padding="same", name=f"conv2d_{number + 1}")(x)
    return keras.Model(image, layers.GlobalAveragePooling2D()(x))


CASES = [Case("tiny_darknet", "keras", lambda: as_torch(_build, TAPS.values()), TAPS,
              ("stage1/conv1/kernel", "stage4/conv2/kernel", "head/dense/kernel"), size=SIDE, exact=True,
              smallest=True)]
