"""MobileNetV3: the names of torchvision, timm, and Keras (now and in its published files)."""

from __future__ import annotations

from collections.abc import Mapping

from transfer_jax.models.mobilenet_v3 import STAGES, MobileNetV3
from transfer_jax.pretrained.rules.mobilenet_v2 import timm_blocks
from transfer_jax.pretrained.rules.table import (
    DEPTHWISE_HWCM,
    KERAS,
    POINTWISE,
    POINTWISE_HWIO,
    TORCH,
    Layout,
    Naming,
    Rule,
    rules,
)

COUNTERS = (r".*num_batches_tracked",)
INPUT_KERNELS = ("stem/conv/kernel",)
BLOCK = "stage{s}/block{b}"


def _before(backbone: MobileNetV3, stage: int) -> int:
    """How many blocks lie before a stage (from 1)."""
    return sum(len(blocks) for blocks in STAGES[backbone.size][:stage - 1])


def torchvision_step(kind: str, expands: bool, squeezes: bool) -> int:
    """Place of a convolution (or of `se`) in torchvision's sequence of one block."""
    steps = [*["expand"] * expands, "depthwise", *["se"] * squeezes, "project"]
    return steps.index(kind)


def torchvision(backbone: MobileNetV3) -> Layout:
    stages = STAGES[backbone.size]

    def unit(kind: str, suffix: str) -> Naming:
        def name(s: int, b: int) -> str:
            step = torchvision_step(kind, s > 1, stages[s - 1][b].squeezed > 0)
            return f"features.{_before(backbone, s) + b + 1}.block.{step}.{suffix}"

        return name

    numbers = range(1, len(stages) + 1)
    end = _before(backbone, len(stages) + 1) + 1
    return Layout(rules(
        TORCH.conv("stem/conv", "features.0.0"), TORCH.norm("stem/bn", "features.0.1"),
        *(rules(TORCH.conv(f"{BLOCK}/{kind}/conv", unit(kind, "0")), TORCH.norm(f"{BLOCK}/{kind}/bn", unit(kind, "1")))
          for kind in ("expand", "depthwise", "project")),
        TORCH.conv(f"{BLOCK}/se/reduce", unit("se", "fc1")), TORCH.conv(f"{BLOCK}/se/expand", unit("se", "fc2")),
        TORCH.conv("top/conv", f"features.{end}.0"), TORCH.norm("top/bn", f"features.{end}.1"),
        TORCH.dense("hidden", "classifier.0"), TORCH.dense("head/dense", "classifier.3"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS, modules={
        "stem": "features.0", **{f"stage{s}": f"features.{_before(backbone, s + 1)}" for s in numbers},
        "top": f"features.{end}"})


def timm(backbone: MobileNetV3) -> Layout:
    """The hidden layer is a 1x1 convolution of the mean there."""
    count = len(STAGES[backbone.size])
    return Layout(rules(
        timm_blocks(), TORCH.conv("top/conv", f"blocks.{count}.0.conv"), TORCH.norm("top/bn", f"blocks.{count}.0.bn1"),
        TORCH.dense("hidden", "conv_head", POINTWISE), TORCH.dense("head/dense", "classifier"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS, modules={
        "stem": "bn1", **{f"stage{s}": f"blocks.{s - 1}" for s in range(1, count + 1)}, "top": f"blocks.{count}"})


NEW = {"stem": "conv", "stem_bn": "conv_bn", "top": "conv_1", "top_bn": "conv_1_bn", "hidden": "conv_2",
       "head": "logits", "between": "_", "bn": "_bn", "reduce": "squeeze_excite_conv",
       "expand": "squeeze_excite_conv_1", "depthwise_kernel": "kernel"}
OLD = {"stem": "Conv", "stem_bn": "Conv/BatchNorm", "top": "Conv_1", "top_bn": "Conv_1/BatchNorm", "hidden": "Conv_2",
       "head": "Logits", "between": "/", "bn": "/BatchNorm", "reduce": "squeeze_excite/Conv",
       "expand": "squeeze_excite/Conv_1", "depthwise_kernel": "depthwise_kernel"}


def _keras(backbone: MobileNetV3, called: Mapping[str, str]) -> Layout:
    def block(number: int) -> str:
        return (f"expanded_conv_{number}" if number else "expanded_conv") + called["between"]

    def unit(suffix: str) -> Naming:
        return lambda s, b: block(_before(backbone, s) + b) + suffix

    def last(s: int) -> str:
        blocks = STAGES[backbone.size][s - 1]
        added = len(blocks) > 1 or blocks[0].strides == 1
        return block(_before(backbone, s + 1) - 1) + ("add" if added else f"project{called['bn']}")

    return Layout(rules(
        KERAS.conv("stem/conv", called["stem"]), KERAS.norm("stem/bn", called["stem_bn"]),
        Rule(f"{BLOCK}/depthwise/conv/kernel", unit(f"depthwise/{called['depthwise_kernel']}"), DEPTHWISE_HWCM),
        *(KERAS.conv(f"{BLOCK}/{kind}/conv", unit(kind)) for kind in ("expand", "project")),
        *(KERAS.norm(f"{BLOCK}/{kind}/bn", unit(kind + called["bn"])) for kind in ("expand", "depthwise", "project")),
        *(KERAS.conv(f"{BLOCK}/se/{part}", unit(called[part])) for part in ("reduce", "expand")),
        KERAS.conv("top/conv", called["top"]), KERAS.norm("top/bn", called["top_bn"]),
        KERAS.dense("hidden", called["hidden"], POINTWISE_HWIO),
        KERAS.dense("head/dense", called["head"], POINTWISE_HWIO),
    ), input_kernels=INPUT_KERNELS, modules={f"stage{s}": last(s) for s in range(1, len(STAGES[backbone.size]) + 1)})


def keras(backbone: MobileNetV3) -> Layout:
    return _keras(backbone, NEW)


def keras_old(backbone: MobileNetV3) -> Layout:
    """Published files are of Keras 2, with slashes in the names of layers."""
    return _keras(backbone, OLD)


LAYOUTS = {"torchvision": torchvision, "timm": timm, "keras": keras, "keras_old": keras_old}
