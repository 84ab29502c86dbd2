"""ResNet against torchvision, timm and transformers."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.oracle import framework

DEPTHS = (18, 34, 50, 101, 152)


def _torchvision(depth: int) -> Any:
    return framework("torchvision").models.get_model(f"resnet{depth}", num_classes=CLASSES)


def _timm(depth: int) -> Any:
    return framework("timm").create_model(f"resnet{depth}", num_classes=CLASSES)


def _transformers(depth: int) -> Any:
    transformers = framework("transformers")
    basic = depth < 50
    depths = {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[depth]
    config = transformers.ResNetConfig(depths=depths, layer_type="basic" if basic else "bottleneck", num_labels=CLASSES,
                                       hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048])
    return transformers.ResNetForImageClassification(config)


def _case(depth: int, layout: str, original: Any, **more: Any) -> Case:
    taps = {"stem": "maxpool", **{f"stage{i}": f"layer{i}" for i in range(1, 5)}}
    if layout == "transformers":
        taps = {"stem": "resnet.embedder", **{f"stage{i}": f"resnet.encoder.stages.{i - 1}" for i in range(1, 5)}}
    return Case(f"resnet{depth}", layout, functools.partial(original, depth), taps,
                ("conv1/kernel", "stage2/block0/conv2/kernel", "head/dense/kernel"),
                gains={f".*/bn{2 if depth < 50 else 3}/scale": 0.2 if depth < 100 else 0.05}, **more)


CASES = [*(_case(depth, "torchvision", _torchvision, smallest=depth == 18) for depth in DEPTHS),
         *(_case(depth, "timm", _timm) for depth in (18, 50)),
         *(_case(depth, "transformers", _transformers, smallest=depth == 18) for depth in (18, 50))]
