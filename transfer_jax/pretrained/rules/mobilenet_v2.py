"""MobileNetV2: the names of torchvision, timm, transformers, and Keras (now and in its published files)."""

from __future__ import annotations

import itertools

from transfer_jax.models.mobilenet_v2 import STAGES, MobileNetV2
from transfer_jax.pretrained.rules.table import DEPTHWISE_HWCM, KERAS, TORCH, Layout, Naming, Rule, rules

COUNTERS = (r".*num_batches_tracked",)
INPUT_KERNELS = ("stem/conv/kernel",)
BLOCK = "stage{s}/block{b}"
BLOCKS = [0, *itertools.accumulate(blocks for _, _, blocks, _ in STAGES)]  # how many lie before each stage
STAGE_NUMBERS = range(1, len(STAGES) + 1)


def torchvision(backbone: MobileNetV2) -> Layout:
    def unit(kind: str, norm: bool) -> Naming:
        def name(s: int, b: int) -> str:
            number = BLOCKS[s - 1] + b
            step = {"expand": 0, "depthwise": 1, "project": 2}[kind] - (number == 0)  # the first does not expand
            inner = step + norm if kind == "project" else f"{step}.{int(norm)}"
            return f"features.{number + 1}.conv.{inner}"

        return name

    end = BLOCKS[-1] + 1
    return Layout(rules(
        TORCH.conv("stem/conv", "features.0.0"), TORCH.norm("stem/bn", "features.0.1"),
        *(rules(TORCH.conv(f"{BLOCK}/{kind}/conv", unit(kind, False)),
                TORCH.norm(f"{BLOCK}/{kind}/bn", unit(kind, True))) for kind in ("expand", "depthwise", "project")),
        TORCH.conv("top/conv", f"features.{end}.0"), TORCH.norm("top/bn", f"features.{end}.1"),
        TORCH.dense("head/dense", "classifier.1"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS, modules={
        "stem": "features.0", **{f"stage{s}": f"features.{BLOCKS[s]}" for s in STAGE_NUMBERS},
        "top": f"features.{end}"})


def timm_blocks() -> tuple[Rule, ...]:
    """Stem and stages of all networks of inverted residuals in timm; the blocks of the first stage do not expand."""
    first, place = "stage1/block{b}", "blocks.{s-1}.{b}"
    return rules(
        TORCH.conv("stem/conv", "conv_stem"), TORCH.norm("stem/bn", "bn1"),
        TORCH.conv(f"{first}/depthwise/conv", "blocks.0.{b}.conv_dw"),
        TORCH.norm(f"{first}/depthwise/bn", "blocks.0.{b}.bn1"),
        TORCH.conv(f"{first}/project/conv", "blocks.0.{b}.conv_pw"),
        TORCH.norm(f"{first}/project/bn", "blocks.0.{b}.bn2"),
        TORCH.conv(f"{BLOCK}/expand/conv", f"{place}.conv_pw"), TORCH.norm(f"{BLOCK}/expand/bn", f"{place}.bn1"),
        TORCH.conv(f"{BLOCK}/depthwise/conv", f"{place}.conv_dw"), TORCH.norm(f"{BLOCK}/depthwise/bn", f"{place}.bn2"),
        TORCH.conv(f"{BLOCK}/project/conv", f"{place}.conv_pwl"), TORCH.norm(f"{BLOCK}/project/bn", f"{place}.bn3"),
        TORCH.conv(f"{BLOCK}/se/{{part:reduce|expand}}", f"{place}.se.conv_{{part}}"))


def timm(backbone: MobileNetV2) -> Layout:
    return Layout(rules(
        timm_blocks(), TORCH.conv("top/conv", "conv_head"), TORCH.norm("top/bn", "bn2"),
        TORCH.dense("head/dense", "classifier"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS, modules={
        "stem": "bn1", **{f"stage{s}": f"blocks.{s - 1}" for s in STAGE_NUMBERS}, "top": "bn2"})


def transformers(backbone: MobileNetV2) -> Layout:
    """Their stem has the first block in it."""
    def unit(called: str, part: str) -> Naming:
        def name(s: int, b: int) -> str:
            number = BLOCKS[s - 1] + b
            place = f"layer.{number - 1}" if number else "conv_stem"
            return f"mobilenet_v2.{place}.{called}.{part}"

        return name

    inner = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
    stem, top = "mobilenet_v2.conv_stem.first_conv", "mobilenet_v2.conv_1x1"
    return Layout(rules(
        TORCH.conv("stem/conv", f"{stem}.convolution"), TORCH.norm("stem/bn", f"{stem}.normalization"),
        *(rules(TORCH.conv(f"{BLOCK}/{kind}/conv", unit(called, "convolution")),
                TORCH.norm(f"{BLOCK}/{kind}/bn", unit(called, "normalization"))) for kind, called in inner.items()),
        TORCH.conv("top/conv", f"{top}.convolution"), TORCH.norm("top/bn", f"{top}.normalization"),
        TORCH.dense("head/dense", "classifier"),
    ), ignore=COUNTERS, prefix="mobilenet_v2.", input_kernels=INPUT_KERNELS, modules={
        "stem": stem, "stage1": "mobilenet_v2.conv_stem",
        **{f"stage{s}": f"mobilenet_v2.layer.{BLOCKS[s] - 2}" for s in STAGE_NUMBERS[1:]}, "top": top})


def _keras(depthwise: str) -> Layout:
    def block(number: int) -> str:
        return f"block_{number}" if number else "expanded_conv"

    def unit(suffix: str) -> Naming:
        return lambda s, b: f"{block(BLOCKS[s - 1] + b)}_{suffix}"

    def last(s: int) -> str:
        return f"{block(BLOCKS[s] - 1)}_{'add' if STAGES[s - 1][2] > 1 else 'project_BN'}"

    return Layout(rules(
        KERAS.conv("stem/conv", "Conv1"), KERAS.norm("stem/bn", "bn_Conv1"),
        Rule(f"{BLOCK}/depthwise/conv/kernel", unit(f"depthwise/{depthwise}"), DEPTHWISE_HWCM),
        *(KERAS.conv(f"{BLOCK}/{kind}/conv", unit(kind)) for kind in ("expand", "project")),
        *(KERAS.norm(f"{BLOCK}/{kind}/bn", unit(f"{kind}_BN")) for kind in ("expand", "depthwise", "project")),
        KERAS.conv("top/conv", "Conv_1"), KERAS.norm("top/bn", "Conv_1_bn"), KERAS.dense("head/dense", "predictions"),
    ), input_kernels=INPUT_KERNELS, modules={
        "stem": "Conv1_relu", **{f"stage{s}": last(s) for s in STAGE_NUMBERS}, "top": "out_relu"})


def keras(backbone: MobileNetV2) -> Layout:
    return _keras("kernel")


def keras_old(backbone: MobileNetV2) -> Layout:
    """Published files are of Keras 2, which calls kernels of depthwise convolutions otherwise."""
    return _keras("depthwise_kernel")


LAYOUTS = {"torchvision": torchvision, "timm": timm, "transformers": transformers, "keras": keras,
           "keras_old": keras_old}
