"""VGG with and without BatchNorm against torchvision, timm and Keras."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from tests.parity.oracle import framework
from transfer_jax.models.vgg import VGG
from transfer_jax.pretrained.rules import vgg

DEPTHS = (11, 13, 16, 19)
SIDE = 64


def _torchvision(name: str) -> Any:
    return framework("torchvision").models.get_model(name, num_classes=CLASSES)


def _timm(name: str) -> Any:
    return framework("timm").create_model(name, num_classes=CLASSES)


def _keras(name: str, taps: dict[str, str]) -> Any:
    def build(keras: Any) -> Any:
        make = getattr(keras.applications, name.upper())
        return make(weights=None, classes=CLASSES, classifier_activation=None, input_shape=(SIDE, SIDE, 3))

    return as_torch(build, taps.values())


def _case(name: str, layout: str, original: Any, pool_size: int = 7, **more: Any) -> Case:
    depth, _, norm = name.removeprefix("vgg").partition("_")
    taps = vgg.LAYOUTS[layout](VGG(depth=int(depth), batch_norm=bool(norm))).modules
    original = functools.partial(original, name, taps) if layout == "keras" else functools.partial(original, name)
    return Case(name, layout, original, taps, ("stage1/conv1/kernel", "stage4/conv1/kernel", "head/dense/kernel"),
                {"dropout": 0.0, "pool_size": pool_size}, size=SIDE, **more)


NAMES = [f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in DEPTHS]
# In float32 a unit of theirs lies so near its kink that the two sides take different slopes: 1e-2 of a gradient.
EXACT = ("vgg16", "vgg19", "vgg19_bn")
CASES = [*(_case(name, "torchvision", _torchvision, smallest=name == "vgg11_bn", exact=name in EXACT)
           for name in NAMES),
         *(_case(name, "timm", _timm, exact=name in EXACT) for name in NAMES),
         # Keras flattens the map as it comes: here 2 x 2 pixels.
         *(_case(name, "keras", _keras, pool_size=2, smallest=name == "vgg16") for name in ("vgg16", "vgg19"))]
