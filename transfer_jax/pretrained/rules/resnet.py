"""ResNet: the names of torchvision and timm (the same), and of transformers."""

from __future__ import annotations

from transfer_jax.models.resnet import ResNet
from transfer_jax.pretrained.rules.table import TORCH, Layout, rules

COUNTERS = (r".*num_batches_tracked",)


def torchvision(backbone: ResNet) -> Layout:
    return Layout(rules(
        TORCH.conv("conv1", "conv1"), TORCH.norm("bn1", "bn1"),
        TORCH.conv("stage{s}/block{b}/conv{i}", "layer{s}.{b}.conv{i}"),
        TORCH.norm("stage{s}/block{b}/bn{i}", "layer{s}.{b}.bn{i}"),
        TORCH.conv("stage{s}/block{b}/shortcut_conv", "layer{s}.{b}.downsample.0"),
        TORCH.norm("stage{s}/block{b}/shortcut_bn", "layer{s}.{b}.downsample.1"),
        TORCH.dense("head/dense", "fc"),
    ), ignore=COUNTERS, input_kernels=("conv1/kernel",))


def transformers(backbone: ResNet) -> Layout:
    block = "resnet.encoder.stages.{s-1}.layers.{b}"
    return Layout(rules(
        TORCH.conv("conv1", "resnet.embedder.embedder.convolution"),
        TORCH.norm("bn1", "resnet.embedder.embedder.normalization"),
        TORCH.conv("stage{s}/block{b}/conv{i}", block + ".layer.{i-1}.convolution"),
        TORCH.norm("stage{s}/block{b}/bn{i}", block + ".layer.{i-1}.normalization"),
        TORCH.conv("stage{s}/block{b}/shortcut_conv", block + ".shortcut.convolution"),
        TORCH.norm("stage{s}/block{b}/shortcut_bn", block + ".shortcut.normalization"),
        TORCH.dense("head/dense", "classifier.1"),
    ), ignore=COUNTERS, prefix="resnet.", input_kernels=("conv1/kernel",))


LAYOUTS = {"torchvision": torchvision, "timm": torchvision, "transformers": transformers}
