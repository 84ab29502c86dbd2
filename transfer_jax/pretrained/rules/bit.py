"""BiT ResNet-v2: the names of timm, of transformers, and of the authors' own .npz files."""

from __future__ import annotations

from transfer_jax.models.bit import BiTResNet
from transfer_jax.pretrained.rules.table import POINTWISE, TORCH, Layout, Op, Rule, rules

INPUT_KERNELS = ("conv1/kernel",)
LETTERS = {1: "a", 2: "b", 3: "c"}  # the authors' names of the convolutions of one block
HEAD_1X1 = Op("1x1 convolution (1, 1, I, O) as a dense layer", lambda a: a.reshape(a.shape[2:]),
              lambda a: a.reshape(1, 1, *a.shape))


def timm(backbone: BiTResNet) -> Layout:
    return _torch("stem.conv", "stages.{s-1}.blocks.{b}", "norm", TORCH.dense("head/dense", "head.fc", POINTWISE))


def transformers(backbone: BiTResNet) -> Layout:
    return _torch("bit.embedder.convolution", "bit.encoder.stages.{s-1}.layers.{b}", "bit.norm",
                  TORCH.dense("head/dense", "classifier.1"), prefix="bit.")


def npz(backbone: BiTResNet) -> Layout:
    """Kernels as ours; units count from 01, and the shortcut of a unit is called its projection."""
    def part(s: int, b: int, i: int, suffix: str) -> str:
        return f"resnet/block{s}/unit{b + 1:02d}/{LETTERS[i]}/{suffix}"

    return Layout((
        Rule("conv1/kernel", "resnet/root_block/standardized_conv2d/kernel"),
        Rule("stage{s}/block{b}/shortcut_conv/kernel",
             lambda s, b: part(s, b, 1, "proj/standardized_conv2d/kernel")),
        Rule("stage{s}/block{b}/conv{i}/kernel", lambda s, b, i: part(s, b, i, "standardized_conv2d/kernel")),
        Rule("stage{s}/block{b}/norm{i}/scale", lambda s, b, i: part(s, b, i, "group_norm/gamma")),
        Rule("stage{s}/block{b}/norm{i}/bias", lambda s, b, i: part(s, b, i, "group_norm/beta")),
        Rule("norm/scale", "resnet/group_norm/gamma"), Rule("norm/bias", "resnet/group_norm/beta"),
        Rule("head/dense/kernel", "resnet/head/conv2d/kernel", HEAD_1X1),
        Rule("head/dense/bias", "resnet/head/conv2d/bias"),
    ), input_kernels=INPUT_KERNELS)


def _torch(stem: str, block: str, norm: str, head: tuple[Rule, ...], prefix: str = "") -> Layout:
    return Layout(rules(
        TORCH.conv("conv1", stem),
        TORCH.conv("stage{s}/block{b}/shortcut_conv", block + ".downsample.conv"),
        TORCH.conv("stage{s}/block{b}/conv{i}", block + ".conv{i}"),
        TORCH.norm("stage{s}/block{b}/norm{i}", block + ".norm{i}"),
        TORCH.norm("norm", norm), head,
    ), prefix=prefix, input_kernels=INPUT_KERNELS)


LAYOUTS = {"timm": timm, "transformers": transformers, "npz": npz}
