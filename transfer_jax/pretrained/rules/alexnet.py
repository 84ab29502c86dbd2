"""AlexNet: the names of torchvision."""

from __future__ import annotations

from transfer_jax.models.alexnet import AlexNet
from transfer_jax.pretrained.rules.table import TORCH, Layout, dense_after_flatten, rules

FEATURES = {1: 0, 2: 3, 3: 6, 4: 8, 5: 10}  # number of the convolution: its place in their sequence


def torchvision(backbone: AlexNet) -> Layout:
    side = backbone.pool_size
    return Layout(rules(
        TORCH.conv("conv{i}", lambda i: f"features.{FEATURES[i]}"),
        TORCH.dense("fc6", "classifier.1", dense_after_flatten(256, side, side)), TORCH.dense("fc7", "classifier.4"),
        TORCH.dense("head/dense", "classifier.6"),
    ), input_kernels=("conv1/kernel",), modules={
        **{f"conv{i}": f"features.{place + 1}" for i, place in FEATURES.items()},
        "pool5": "avgpool", "fc6": "classifier.2", "fc7": "classifier.5"})


LAYOUTS = {"torchvision": torchvision}
