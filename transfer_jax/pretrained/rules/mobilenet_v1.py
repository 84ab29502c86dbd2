"""MobileNet v1: the names of Keras (now and in its published files), and of RetinaFace's backbone in PyTorch."""

from __future__ import annotations

import itertools

from transfer_jax.models.mobilenet_v1 import STAGES, MobileNetV1
from transfer_jax.pretrained.rules.table import (
    DEPTHWISE_HWCM,
    KERAS,
    POINTWISE_HWIO,
    TORCH,
    Layout,
    Naming,
    Rule,
    rules,
)

INPUT_KERNELS = ("stem/conv/kernel",)
BLOCK = "stage{s}/block{b}"
BLOCKS = [0, *itertools.accumulate(blocks for _, blocks in STAGES)]  # how many lie before each stage


def _keras(depthwise: str) -> Layout:
    def unit(kind: str, suffix: str = "") -> Naming:
        return lambda s, b: f"conv_{kind}_{BLOCKS[s - 1] + b + 1}{suffix}"

    return Layout(rules(
        KERAS.conv("stem/conv", "conv1"), KERAS.norm("stem/bn", "conv1_bn"),
        Rule(f"{BLOCK}/depthwise/conv/kernel", unit("dw", f"/{depthwise}"), DEPTHWISE_HWCM),
        KERAS.norm(f"{BLOCK}/depthwise/bn", unit("dw", "_bn")),
        KERAS.conv(f"{BLOCK}/pointwise/conv", unit("pw")), KERAS.norm(f"{BLOCK}/pointwise/bn", unit("pw", "_bn")),
        KERAS.dense("head/dense", "conv_preds", POINTWISE_HWIO),
    ), input_kernels=INPUT_KERNELS, modules={
        "stem": "conv1_relu", **{f"stage{s}": f"conv_pw_{BLOCKS[s]}_relu" for s in range(1, len(STAGES) + 1)}})


def keras(backbone: MobileNetV1) -> Layout:
    return _keras("kernel")


def keras_old(backbone: MobileNetV1) -> Layout:
    """Published files are of Keras 2, which calls kernels of depthwise convolutions otherwise."""
    return _keras("depthwise_kernel")


def retinaface(backbone: MobileNetV1) -> Layout:
    """Three stages as deep as the maps that a detector takes: up to 1/8, 1/16 and 1/32 of the image."""
    starts = (-1, BLOCKS[3], BLOCKS[4])  # the first block of each; the stem stands before block 0

    def unit(place: int) -> Naming:
        def name(s: int, b: int) -> str:
            number = BLOCKS[s - 1] + b
            stage = sum(number >= start for start in starts)
            return f"stage{stage}.{number - starts[stage - 1]}.{place}"

        return name

    return Layout(rules(
        TORCH.conv("stem/conv", "stage1.0.0"), TORCH.norm("stem/bn", "stage1.0.1"),
        TORCH.conv(f"{BLOCK}/depthwise/conv", unit(0)), TORCH.norm(f"{BLOCK}/depthwise/bn", unit(1)),
        TORCH.conv(f"{BLOCK}/pointwise/conv", unit(3)), TORCH.norm(f"{BLOCK}/pointwise/bn", unit(4)),
        TORCH.dense("head/dense", "fc"),
    ), ignore=(r".*num_batches_tracked",), input_kernels=INPUT_KERNELS,
        modules={"stem": "stage1.0", "stage3": "stage1", "stage4": "stage2", "stage5": "stage3"})


LAYOUTS = {"keras": keras, "keras_old": keras_old, "retinaface": retinaface}
