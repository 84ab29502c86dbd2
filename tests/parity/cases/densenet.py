"""DenseNet against torchvision, timm and Keras."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from tests.parity.oracle import framework
from transfer_jax.models.densenet import DenseNet
from transfer_jax.pretrained.rules import densenet

TAPS = {name: layout(DenseNet()).modules for name, layout in densenet.LAYOUTS.items()}
SIDE = 64


def _torchvision(depth: int) -> Any:
    return framework("torchvision").models.get_model(f"densenet{depth}", num_classes=CLASSES)


def _timm(depth: int) -> Any:
    return framework("timm").create_model(f"densenet{depth}", num_classes=CLASSES)


def _keras(depth: int) -> Any:
    def build(keras: Any) -> Any:
        make = getattr(keras.applications, f"DenseNet{depth}")
        return make(weights=None, classes=CLASSES, classifier_activation=None, input_shape=(SIDE, SIDE, 3))

    return as_torch(build, TAPS["keras"].values())


def _case(depth: int, layout: str, original: Any, **arguments: Any) -> Case:
    return Case(f"densenet{depth}", layout, functools.partial(original, depth), TAPS[layout],
                ("conv0/kernel", "denseblock2/layer5/conv2/kernel", "head/dense/kernel"), arguments,
                size=SIDE, exact=True, smallest=depth == 121 and layout == "torchvision")


CASES = [*(_case(depth, "torchvision", _torchvision) for depth in (121, 169, 201)),
         *(_case(depth, "timm", _timm) for depth in (121, 169, 201)),
         *(_case(depth, "keras", _keras, form="keras") for depth in (121, 169, 201))]
