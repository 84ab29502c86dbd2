"""MobileNetV3 against torchvision, timm and Keras."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from tests.parity.oracle import framework
from transfer_jax.models.mobilenet_v3 import MobileNetV3
from transfer_jax.pretrained.rules import mobilenet_v3

SIDE = 70  # odd maps inside: 35, 18, 9, 5, 3
SIZES = ("small", "large")


def _taps(size: str, layout: str) -> dict[str, str]:
    return mobilenet_v3.LAYOUTS[layout](MobileNetV3(size=size)).modules


def _torchvision(size: str) -> Any:
    return framework("torchvision").models.get_model(f"mobilenet_v3_{size}", num_classes=CLASSES)


def _timm(size: str) -> Any:
    return framework("timm").create_model(f"mobilenetv3_{size}_100", num_classes=CLASSES)


def _timm_tf(size: str) -> Any:
    return framework("timm").create_model(f"tf_mobilenetv3_{size}_100", num_classes=CLASSES)


def _keras(size: str) -> Any:
    def build(keras: Any) -> Any:
        make = getattr(keras.applications, f"MobileNetV3{size.capitalize()}")
        return make(weights=None, classes=CLASSES, classifier_activation=None, input_shape=(SIDE, SIDE, 3),
                    dropout_rate=0.0, include_preprocessing=False)

    return as_torch(build, _taps(size, "keras").values())


def _case(size: str, layout: str, form: str, original: Any) -> Case:
    return Case(f"mobilenet_v3_{size}", layout, functools.partial(original, size), _taps(size, layout),
                ("stem/conv/kernel", "stage3/block0/depthwise/conv/kernel", "hidden/kernel"),
                {"dropout": 0.0, "form": form}, size=SIDE, exact=True, smallest=size == "small" and form != "timm_tf",
                name=f"mobilenet_v3_tf_{size}" if form == "timm_tf" else "")


CASES = [_case(size, layout, form, original) for layout, form, original in (
    ("torchvision", "torchvision", _torchvision), ("timm", "timm", _timm), ("timm", "timm_tf", _timm_tf),
    ("keras", "keras", _keras)) for size in SIZES]
