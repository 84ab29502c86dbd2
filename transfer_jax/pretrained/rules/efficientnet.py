"""EfficientNet: the names of torchvision, timm, transformers, and Keras (now and in its published files)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from transfer_jax.models.efficientnet import STAGES, EfficientNet, stage_depths
from transfer_jax.pretrained.catalog import IMAGENET_MEAN, IMAGENET_STD
from transfer_jax.pretrained.rules.mobilenet_v2 import timm_blocks
from transfer_jax.pretrained.rules.mobilenet_v3 import torchvision_step
from transfer_jax.pretrained.rules.table import DEPTHWISE_HWCM, KERAS, TORCH, Array, Layout, Naming, Rule, rules

COUNTERS = (r".*num_batches_tracked",)
INPUT_KERNELS = ("stem/conv/kernel",)
BLOCK = "stage{s}/block{b}"
STAGE_NUMBERS = range(1, len(STAGES) + 1)


def torchvision(backbone: EfficientNet) -> Layout:
    def unit(kind: str, suffix: str) -> Naming:
        return lambda s, b: f"features.{s}.{b}.block.{torchvision_step(kind, s > 1, True)}.{suffix}"

    end = len(STAGES) + 1
    return Layout(rules(
        TORCH.conv("stem/conv", "features.0.0"), TORCH.norm("stem/bn", "features.0.1"),
        *(rules(TORCH.conv(f"{BLOCK}/{kind}/conv", unit(kind, "0")), TORCH.norm(f"{BLOCK}/{kind}/bn", unit(kind, "1")))
          for kind in ("expand", "depthwise", "project")),
        TORCH.conv(f"{BLOCK}/se/reduce", unit("se", "fc1")), TORCH.conv(f"{BLOCK}/se/expand", unit("se", "fc2")),
        TORCH.conv("top/conv", f"features.{end}.0"), TORCH.norm("top/bn", f"features.{end}.1"),
        TORCH.dense("head/dense", "classifier.1"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS, modules={
        "stem": "features.0", **{f"stage{s}": f"features.{s}" for s in STAGE_NUMBERS}, "top": f"features.{end}"})


def timm(backbone: EfficientNet) -> Layout:
    return Layout(rules(
        timm_blocks(), TORCH.conv("top/conv", "conv_head"), TORCH.norm("top/bn", "bn2"),
        TORCH.dense("head/dense", "classifier"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS, modules={
        "stem": "bn1", **{f"stage{s}": f"blocks.{s - 1}" for s in STAGE_NUMBERS}, "top": "bn2"})


def transformers(backbone: EfficientNet) -> Layout:
    depths = stage_depths(backbone.variant)

    def unit(suffix: str) -> Naming:
        return lambda s, b: f"efficientnet.encoder.blocks.{sum(depths[:s - 1]) + b}.{suffix}"

    convolutions = {"expand": ("expansion.expand_conv", "expansion.expand_bn"),
                    "depthwise": ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
                    "project": ("projection.project_conv", "projection.project_bn")}
    return Layout(rules(
        TORCH.conv("stem/conv", "efficientnet.embeddings.convolution"),
        TORCH.norm("stem/bn", "efficientnet.embeddings.batchnorm"),
        *(rules(TORCH.conv(f"{BLOCK}/{kind}/conv", unit(conv)), TORCH.norm(f"{BLOCK}/{kind}/bn", unit(norm)))
          for kind, (conv, norm) in convolutions.items()),
        *(TORCH.conv(f"{BLOCK}/se/{part}", unit(f"squeeze_excite.{part}")) for part in ("reduce", "expand")),
        TORCH.conv("top/conv", "efficientnet.encoder.top_conv"), TORCH.norm("top/bn", "efficientnet.encoder.top_bn"),
        TORCH.dense("head/dense", "classifier"),
    ), ignore=COUNTERS, prefix="efficientnet.", input_kernels=INPUT_KERNELS, modules={
        "stem": "efficientnet.embeddings",
        **{f"stage{s}": f"efficientnet.encoder.blocks.{sum(depths[:s]) - 1}" for s in STAGE_NUMBERS},
        "top": "efficientnet.encoder.top_activation"})


def _keras(backbone: EfficientNet, depthwise: str) -> Layout:
    def block(s: int, b: int) -> str:
        return f"block{s}{chr(ord('a') + b)}_"

    def unit(suffix: str) -> Naming:
        return lambda s, b: block(s, b) + suffix

    def last(s: int) -> str:
        depth = stage_depths(backbone.variant)[s - 1]
        return block(s, depth - 1) + ("add" if depth > 1 else "project_bn")

    norms = {"expand": "expand_bn", "depthwise": "bn", "project": "project_bn"}
    return Layout(rules(
        KERAS.conv("stem/conv", "stem_conv"), KERAS.norm("stem/bn", "stem_bn"),
        Rule(f"{BLOCK}/depthwise/conv/kernel", unit(f"dwconv/{depthwise}"), DEPTHWISE_HWCM),
        *(KERAS.conv(f"{BLOCK}/{kind}/conv", unit(f"{kind}_conv")) for kind in ("expand", "project")),
        *(KERAS.norm(f"{BLOCK}/{kind}/bn", unit(norm)) for kind, norm in norms.items()),
        *(KERAS.conv(f"{BLOCK}/se/{part}", unit(f"se_{part}")) for part in ("reduce", "expand")),
        KERAS.conv("top/conv", "top_conv"), KERAS.norm("top/bn", "top_bn"), KERAS.dense("head/dense", "predictions"),
        # The network normalises its images by constants there; here that is the business of the data.
    ), ignore=(r"normalization(_\d+)?/.*",), input_kernels=INPUT_KERNELS, extras=_normalization, modules={
        "stem": "stem_activation", **{f"stage{s}": last(s) for s in STAGE_NUMBERS}, "top": "top_activation"})


def _normalization(backbone: EfficientNet, written: Mapping[str, Array]) -> dict[str, Array]:
    """What brings images of 0..1 to those that the network gets here: ImageNet's constants, if they are coloured."""
    if "stem_conv/kernel" not in written:
        return {}
    channels = written["stem_conv/kernel"].shape[2]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    return {"normalization/mean": np.float32(mean), "normalization/variance": np.square(np.float32(std)),
            "normalization/count": np.zeros((), np.int32)}


def keras(backbone: EfficientNet) -> Layout:
    return _keras(backbone, "kernel")


def keras_old(backbone: EfficientNet) -> Layout:
    """Published files are of Keras 2, which calls kernels of depthwise convolutions otherwise."""
    return _keras(backbone, "depthwise_kernel")


LAYOUTS = {"torchvision": torchvision, "timm": timm, "transformers": transformers, "keras": keras,
           "keras_old": keras_old}
