"""CREPE against Keras, after the description in ml5.js's model.json and the authors' paper, without its dropout."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.parity.harness import CLASSES, Case, Inputs
from tests.parity.keras_original import as_torch
from transfer_jax.models.crepe import Crepe
from transfer_jax.pretrained.rules import crepe

FILTERS = (128, 16, 16, 16, 32, 64)  # of the size 'tiny'
SAMPLES = 1024
# Sums of up to 8,192 products: gradients of Keras in float32 differ from float64 by 1e-5, ours by 3e-6.
TOLERANCE = 2e-5


def _build(prefix: str, norm: str, pool: str, times: int, keras: Any) -> Any:
    layers = keras.layers
    x = audio = keras.Input((SAMPLES, 1, 1))
    for i, filters in enumerate(FILTERS, 1):
        size, strides = (512, 4) if i == 1 else (64, 1)
        x = layers.Conv2D(filters * times, (size, 1), (strides, 1), "same", activation="relu", name=f"{prefix}{i}")(x)
        x = layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=f"{prefix}{i}{norm}")(x)
        x = layers.MaxPooling2D((2, 1), name=f"{prefix}{i}{pool}")(x)
    x = layers.Flatten()(layers.Permute((2, 1, 3))(x))
    return keras.Model(audio, layers.Dense(CLASSES, name=f"{prefix.replace('conv', '')}classifier")(x))


def _inputs(rng: np.random.Generator) -> Inputs:
    audio = rng.normal(size=(2, SAMPLES)).astype(np.float32)
    return Inputs(audio, (audio[:, None, :, None],))


def _without_width(x: Any) -> Any:
    """[B, C, T, 1] -> [B, T, C]."""
    return x[..., 0].permute(0, 2, 1)


def _case(size: str, layout: str, times: int, names: tuple[str, str, str], **more: Any) -> Case:
    taps = crepe.LAYOUTS[layout](Crepe()).modules
    build = functools.partial(_build, *names, times)
    return Case(f"crepe_{size}", layout, lambda: as_torch(build, taps.values()),
                {tap: (name, _without_width) for tap, name in taps.items()},
                ("block1/conv/kernel", "block3/conv/kernel", "head/dense/kernel"), {"dropout": 0.0}, inputs=_inputs,
                tolerance=TOLERANCE, **more)


CASES = [_case("tiny", "keras", 1, ("crepe_conv", "_BN", "_maxpool"), smallest=True),
         _case("small", "authors", 2, ("conv", "-BN", "-maxpool"))]
