"""SqueezeNet: the names of torchvision."""

from __future__ import annotations

from transfer_jax.models.squeezenet import VERSIONS, SqueezeNet
from transfer_jax.pretrained.rules.table import TORCH, Layout, rules


def torchvision(backbone: SqueezeNet) -> Layout:
    pooled = VERSIONS[backbone.version][2]

    def place(i: int) -> str:
        """Convolution, ReLU, then the fire modules with the poolings in front of some of them."""
        return f"features.{i + sum(p <= i for p in pooled)}"

    return Layout(rules(
        TORCH.conv("conv1", "features.0"),
        TORCH.conv("fire{i}/{part:squeeze|expand1x1|expand3x3}", lambda i, part: f"{place(i)}.{part}"),
        TORCH.conv("head/conv", "classifier.1"),
    ), input_kernels=("conv1/kernel",), modules={"conv1": "features.1", **{f"fire{i}": place(i) for i in range(2, 10)}})


LAYOUTS = {"torchvision": torchvision}
