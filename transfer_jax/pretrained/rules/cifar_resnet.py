"""CIFAR ResNets: the PyTorch files of Y. Idelbayev (akamaster), and MLPerf Tiny's ResNet-8 in Keras."""

from __future__ import annotations

from transfer_jax.models.cifar_resnet import CifarResNet
from transfer_jax.pretrained.rules.table import KERAS, TORCH, Layout, rules

INPUT_KERNELS = ("conv1/kernel",)


def akamaster(backbone: CifarResNet) -> Layout:
    return Layout(rules(
        TORCH.conv("conv1", "conv1"), TORCH.norm("bn1", "bn1"),
        TORCH.conv("stage{s}/block{b}/conv{i}", "layer{s}.{b}.conv{i}"),
        TORCH.norm("stage{s}/block{b}/bn{i}", "layer{s}.{b}.bn{i}"),
        TORCH.conv("stage{s}/block{b}/shortcut_conv", "layer{s}.{b}.shortcut.0"),
        TORCH.norm("stage{s}/block{b}/shortcut_bn", "layer{s}.{b}.shortcut.1"),
        TORCH.dense("head/dense", "linear"),
    ), ignore=(r".*num_batches_tracked",), input_kernels=INPUT_KERNELS)


def keras(backbone: CifarResNet) -> Layout:
    """Layers numbered by kind in the order in which they were made; each stage is one block."""
    def conv(s: int, i: int) -> str:
        return f"conv2d_{i if s == 1 else 3 * s - 4 + i}"

    return Layout(rules(
        KERAS.conv("conv1", "conv2d"), KERAS.norm("bn1", "batch_normalization"),
        KERAS.conv("stage{s}/block0/conv{i}", conv),
        KERAS.norm("stage{s}/block0/bn{i}", lambda s, i: f"batch_normalization_{2 * s - 2 + i}"),
        KERAS.conv("stage{s}/block0/shortcut_conv", lambda s: conv(s, 3)),
        KERAS.dense("head/dense", "dense"),
    ), input_kernels=INPUT_KERNELS)


LAYOUTS = {"akamaster": akamaster, "keras": keras}
