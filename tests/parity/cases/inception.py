"""Inception-v3 against torchvision, timm and Keras."""

from __future__ import annotations

from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from tests.parity.oracle import framework
from transfer_jax.models.inception import InceptionV3
from transfer_jax.pretrained.rules import inception

TAPS = {name: layout(InceptionV3()).modules for name, layout in inception.LAYOUTS.items()}
SIDE = 107


def _torchvision() -> Any:
    return framework("torchvision").models.Inception3(num_classes=CLASSES, aux_logits=False, transform_input=True,
                                                      init_weights=False)


def _timm() -> Any:
    return framework("timm").create_model("inception_v3", num_classes=CLASSES)


def _keras() -> Any:
    def build(keras: Any) -> Any:
        return keras.applications.InceptionV3(weights=None, classes=CLASSES, classifier_activation=None,
                                              input_shape=(SIDE, SIDE, 3))

    return as_torch(build, TAPS["keras"].values())


def _case(layout: str, original: Any, **arguments: Any) -> Case:
    return Case("inception_v3", layout, original, TAPS[layout],
                ("conv_1a/conv/kernel", "mixed_6c/branch7x7_2/conv/kernel", "head/dense/kernel"),
                {"dropout": 0.0, **arguments}, size=SIDE, exact=True, smallest=layout == "torchvision")


CASES = [_case("torchvision", _torchvision, transform_input=True), _case("timm", _timm),
         _case("keras", _keras, form="keras")]
