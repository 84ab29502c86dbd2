"""ConvNeXt against torchvision, timm and transformers."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity import transformers_original
from tests.parity.harness import CLASSES, Case
from tests.parity.oracle import framework
from transfer_jax.models.convnext import SIZES

MEMBERS = ("tiny", "small", "base")


def _torchvision(size: str) -> Any:
    return framework("torchvision").models.get_model(f"convnext_{size}", num_classes=CLASSES)


def _timm(size: str) -> Any:
    return framework("timm").create_model(f"convnext_{size}", num_classes=CLASSES)


def _transformers(size: str) -> Any:
    transformers = framework("transformers")
    depths, width = SIZES[size]
    return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(
        depths=list(depths), hidden_sizes=[width * 2**i for i in range(4)], num_labels=CLASSES))


def _case(size: str, layout: str, original: Any, taps: dict[str, Any], **more: Any) -> Case:
    return Case(f"convnext_{size}", layout, functools.partial(original, size), taps,
                ("stem_conv/kernel", "stage3/block1/dwconv/kernel", "head/dense/kernel"), size=64,
                smallest=size == "tiny" and layout == "torchvision", **more)


def _of_torchvision(size: str) -> Case:
    return _case(size, "torchvision", _torchvision, {
        "stem": "features.0", **{f"stage{i}": f"features.{2 * i - 1}" for i in range(1, 5)},
        "pooled": ("classifier.0", lambda value: value.flatten(1))})


def _of_timm(size: str) -> Case:
    return _case(size, "timm", _timm, {"stem": "stem", **{f"stage{i}": f"stages.{i - 1}" for i in range(1, 5)},
                                       "pooled": "head.flatten"})


def _of_transformers(size: str) -> Case:
    stages = {f"stage{i}": f"convnext.encoder.stages.{i - 1}" for i in range(1, 5)}
    return _case(size, "transformers", _transformers, {
        "stem": "convnext.embeddings", **stages, "pooled": "convnext.layernorm"},
        arguments={"final_epsilon": 1e-12}, load=transformers_original.load, save=transformers_original.save)


CASES = [make(size) for make in (_of_torchvision, _of_timm, _of_transformers) for size in MEMBERS]
