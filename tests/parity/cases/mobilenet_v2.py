"""MobileNetV2 against torchvision, timm, transformers and Keras, at several widths."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity import transformers_original
from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from tests.parity.oracle import framework
from transfer_jax.models.mobilenet_v2 import MobileNetV2
from transfer_jax.pretrained.rules import mobilenet_v2

TAPS = {name: layout(MobileNetV2()).modules for name, layout in mobilenet_v2.LAYOUTS.items()}
SIDE = 70  # odd maps inside: 35, 18, 9, 5, 3


def _torchvision(width: float) -> Any:
    return framework("torchvision").models.mobilenet_v2(num_classes=CLASSES, width_mult=width)


def _timm(width: float) -> Any:
    return framework("timm").create_model(f"mobilenetv2_{round(100 * width):03d}", num_classes=CLASSES)


def _transformers(width: float) -> Any:
    transformers = framework("transformers")
    config = transformers.MobileNetV2Config(depth_multiplier=width, num_labels=CLASSES)
    return transformers.MobileNetV2ForImageClassification(config)


def _keras(width: float) -> Any:
    def build(keras: Any) -> Any:
        return keras.applications.MobileNetV2(alpha=width, weights=None, classes=CLASSES, classifier_activation=None,
                                              input_shape=(SIDE, SIDE, 3))

    return as_torch(build, TAPS["keras"].values())


# Untamed, the shortcuts add up until most of `top` is clipped at 6, and rounding of what is left is large beside that.
GAINS = {".*/project/bn/scale": 0.3}


def _case(layout: str, original: Any, width: float = 1.0, **arguments: Any) -> Case:
    save = transformers_original.save if layout == "transformers" else None  # names in memory may differ
    return Case("mobilenet_v2", layout, functools.partial(original, width), TAPS[layout],
                ("stem/conv/kernel", "stage4/block0/depthwise/conv/kernel", "head/dense/kernel"),
                {"dropout": 0.0, "width": width, **arguments}, size=SIDE, exact=True, gains=GAINS,
                smallest=width == 1.0 and layout != "timm",
                name="" if width == 1.0 else f"mobilenet_v2_{round(100 * width):03d}", save=save)


CASES = [*(_case("torchvision", _torchvision, width) for width in (1.0, 0.35, 1.4)),
         *(_case("timm", _timm, width) for width in (1.0, 0.5, 1.4)),
         *(_case("transformers", _transformers, width, form="transformers") for width in (1.0, 0.35, 1.4)),
         *(_case("keras", _keras, width, form="keras") for width in (1.0, 0.35))]
