"""EfficientNet B0 to B7 against torchvision, timm, transformers and Keras."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.parity import transformers_original
from tests.parity.harness import CLASSES, Case, Inputs
from tests.parity.keras_original import as_torch
from tests.parity.oracle import framework
from transfer_jax.models.efficientnet import SCALES, EfficientNet
from transfer_jax.models.inverted_residual import round_channels
from transfer_jax.pretrained.rules import efficientnet

SIDE = 37  # odd maps inside: 19, 10, 5, 3, 2
VARIANTS = range(len(SCALES))
# What google/efficientnet-b0 ... b7 say as `depthwise_padding`: where the maps of their images have odd sides.
SYMMETRIC = ((), (16,), (5, 8, 16), (5, 18), (6,), (13, 27), (31,), (18,))


def _taps(variant: int, layout: str) -> dict[str, str]:
    return efficientnet.LAYOUTS[layout](EfficientNet(variant=variant)).modules


def _torchvision(variant: int) -> Any:
    return framework("torchvision").models.get_model(f"efficientnet_b{variant}", num_classes=CLASSES)


def _timm(variant: int) -> Any:
    return framework("timm").create_model(f"efficientnet_b{variant}", num_classes=CLASSES)


def _timm_tf(variant: int) -> Any:
    return framework("timm").create_model(f"tf_efficientnet_b{variant}", num_classes=CLASSES)


def _transformers(variant: int) -> Any:
    transformers, scale = framework("transformers"), SCALES[variant]
    config = transformers.EfficientNetConfig(
        width_coefficient=scale.width, depth_coefficient=scale.depth, hidden_dim=round_channels(1280 * scale.width),
        depthwise_padding=list(SYMMETRIC[variant]), num_labels=CLASSES)
    return transformers.EfficientNetForImageClassification(config)


def _keras(variant: int) -> Any:
    def build(keras: Any) -> Any:
        scale = SCALES[variant]
        return framework("keras.src.applications.efficientnet").EfficientNet(
            scale.width, scale.depth, scale.side, dropout_rate=0.0, drop_connect_rate=0.0, weights=None,
            classes=CLASSES, classifier_activation=None, input_shape=(SIDE, SIDE, 3))

    return as_torch(build, _taps(variant, "keras").values())


def _keras_inputs(rng: np.random.Generator) -> Inputs:
    """Theirs divides by 255; the normalisation behind that is the identity here, as before Keras reads a file.

    With few digits, so that 255 times the image is exact.
    """
    image = (np.round(2**10 * rng.normal(size=(2, SIDE, SIDE, 3))) / 2**10).astype(np.float32)
    return Inputs(image, (255 * image.transpose(0, 3, 1, 2),))


def _case(variant: int, layout: str, original: Any, name: str = "", **more: Any) -> Case:
    if layout == "transformers":
        more["save"] = transformers_original.save  # names in memory may differ
    form = more.pop("form", layout)
    arguments = {"symmetric": SYMMETRIC[variant]} if form == "transformers" else {}
    return Case(f"efficientnet_b{variant}", layout, functools.partial(original, variant), _taps(variant, layout),
                ("stem/conv/kernel", "stage4/block0/depthwise/conv/kernel", "head/dense/kernel"),
                {"dropout": 0.0, "drop_path": 0.0, "form": form, **arguments}, exact=True,
                smallest=variant == 0 and layout != "timm", name=name, **{"size": SIDE, **more})


CASES = [*(_case(variant, "torchvision", _torchvision) for variant in VARIANTS),
         *(_case(variant, "timm", _timm) for variant in VARIANTS),
         _case(0, "timm", _timm_tf, "efficientnet_tf_b0", form="timm_tf"),
         *(_case(variant, "transformers", _transformers, size=64) for variant in (0, 1, 7)),
         *(_case(variant, "keras", _keras, inputs=_keras_inputs) for variant in (0, 1))]
