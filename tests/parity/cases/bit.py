"""BiT ResNet-v2 against timm and transformers."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.oracle import framework

SIZES = {"bit_resnet50": (50, 1), "bit_resnet101": (101, 1), "bit_resnet50x3": (50, 3), "bit_resnet152x2": (152, 2)}


def _timm(name: str) -> Any:
    depth, width = SIZES[name]
    return framework("timm").create_model(f"resnetv2_{depth}x{width}_bit", num_classes=CLASSES)


def _transformers(name: str) -> Any:
    transformers = framework("transformers")
    depths = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}[SIZES[name][0]]
    return transformers.BitForImageClassification(transformers.BitConfig(depths=depths, num_labels=CLASSES))


def _case(name: str, layout: str, original: Any, **more: Any) -> Case:
    """Larger members train in float64: in float32 rounding grows until gradients of the stem differ by 1e-3 to 2e-2."""
    taps = {"stem": "stem", **{f"stage{i}": f"stages.{i - 1}" for i in range(1, 5)}}
    if layout == "transformers":
        taps = {"stem": "bit.embedder", **{f"stage{i}": f"bit.encoder.stages.{i - 1}" for i in range(1, 5)}}
    return Case(name, layout, functools.partial(original, name), taps,
                ("conv1/kernel", "stage2/block0/conv2/kernel", "head/dense/kernel"),
                gains={".*/norm3/(scale|bias)": 0.2}, exact=name != "bit_resnet50", **more)


CASES = [*(_case(name, "timm", _timm, smallest=name == "bit_resnet50") for name in SIZES),
         _case("bit_resnet50", "transformers", _transformers),
         _case("bit_resnet101", "transformers", _transformers)]
