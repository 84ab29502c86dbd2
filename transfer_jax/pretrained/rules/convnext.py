"""ConvNeXt: the names of torchvision, timm and transformers."""

from __future__ import annotations

from transfer_jax.models.convnext import ConvNeXt
from transfer_jax.pretrained.rules.table import TORCH, Layout, Op, Rule, rules

INPUT_KERNELS = ("stem_conv/kernel",)
CHANNEL_FIRST = Op("(C, 1, 1) as (C,)", lambda a: a.reshape(-1), lambda a: a.reshape(-1, 1, 1))


def torchvision(backbone: ConvNeXt) -> Layout:
    """Stages and the downsampling between them are numbered together."""
    def block(suffix: str):
        return lambda s, b: f"features.{2 * s - 1}.{b}.{suffix}"

    def downsample(place: int):
        return lambda s: f"features.{2 * s - 2}.{place}"

    return Layout(rules(
        TORCH.conv("stem_conv", "features.0.0"), TORCH.norm("stem_norm", "features.0.1"),
        TORCH.norm("stage{s}/downsample_norm", downsample(0)), TORCH.conv("stage{s}/downsample_conv", downsample(1)),
        TORCH.conv("stage{s}/block{b}/dwconv", block("block.0")),
        TORCH.norm("stage{s}/block{b}/norm", block("block.2")),
        TORCH.dense("stage{s}/block{b}/pwconv1", block("block.3")),
        TORCH.dense("stage{s}/block{b}/pwconv2", block("block.5")),
        Rule("stage{s}/block{b}/layer_scale", block("layer_scale"), CHANNEL_FIRST),
        TORCH.norm("norm", "classifier.0"), TORCH.dense("head/dense", "classifier.2"),
    ), input_kernels=INPUT_KERNELS)


def timm(backbone: ConvNeXt) -> Layout:
    block = "stages.{s-1}.blocks.{b}."
    return Layout(rules(
        TORCH.conv("stem_conv", "stem.0"), TORCH.norm("stem_norm", "stem.1"),
        TORCH.norm("stage{s}/downsample_norm", "stages.{s-1}.downsample.0"),
        TORCH.conv("stage{s}/downsample_conv", "stages.{s-1}.downsample.1"),
        TORCH.conv("stage{s}/block{b}/dwconv", block + "conv_dw"), TORCH.norm("stage{s}/block{b}/norm", block + "norm"),
        TORCH.dense("stage{s}/block{b}/pwconv{i}", block + "mlp.fc{i}"),
        Rule("stage{s}/block{b}/layer_scale", block + "gamma"),
        TORCH.norm("norm", "head.norm"), TORCH.dense("head/dense", "head.fc"),
    ), input_kernels=INPUT_KERNELS)


def transformers(backbone: ConvNeXt) -> Layout:
    stage = "convnext.encoder.stages.{s-1}."
    block = stage + "layers.{b}."
    return Layout(rules(
        TORCH.conv("stem_conv", "convnext.embeddings.patch_embeddings"),
        TORCH.norm("stem_norm", "convnext.embeddings.layernorm"),
        TORCH.norm("stage{s}/downsample_norm", stage + "downsampling_layer.0"),
        TORCH.conv("stage{s}/downsample_conv", stage + "downsampling_layer.1"),
        TORCH.conv("stage{s}/block{b}/dwconv", block + "dwconv"),
        TORCH.norm("stage{s}/block{b}/norm", block + "layernorm"),
        TORCH.dense("stage{s}/block{b}/pwconv{i}", block + "pwconv{i}"),
        Rule("stage{s}/block{b}/layer_scale", block + "layer_scale_parameter"),
        TORCH.norm("norm", "convnext.layernorm"), TORCH.dense("head/dense", "classifier"),
    ), prefix="convnext.", input_kernels=INPUT_KERNELS)


LAYOUTS = {"torchvision": torchvision, "timm": timm, "transformers": transformers}
