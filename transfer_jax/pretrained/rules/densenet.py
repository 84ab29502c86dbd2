"""DenseNet: the names of torchvision and timm (the same), those of torchvision's published files, and of Keras."""

from __future__ import annotations

from transfer_jax.models.densenet import DenseNet
from transfer_jax.pretrained.rules.table import KERAS, TORCH, Layout, rules

COUNTERS = (r".*num_batches_tracked",)
INPUT_KERNELS = ("conv0/kernel",)


def _pytorch(dot: str) -> Layout:
    """`dot` stands between the kind and the number of a layer inside of a dense layer."""
    layer = "features.denseblock{b}.denselayer{n+1}."
    stages = [name for b in range(1, 5) for name in (f"denseblock{b}", f"transition{b}")][:-1]
    return Layout(rules(
        TORCH.conv("conv0", "features.conv0"), TORCH.norm("norm{i}", "features.norm{i}"),
        TORCH.conv("denseblock{b}/layer{n}/conv{i}", f"{layer}conv{dot}{{i}}"),
        TORCH.norm("denseblock{b}/layer{n}/norm{i}", f"{layer}norm{dot}{{i}}"),
        TORCH.conv("transition{b}/conv", "features.transition{b}.conv"),
        TORCH.norm("transition{b}/norm", "features.transition{b}.norm"),
        TORCH.dense("head/dense", "classifier"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS,
        modules={"stem": "features.pool0", **{name: f"features.{name}" for name in stages}})


def torchvision(backbone: DenseNet) -> Layout:
    return _pytorch("")


def torchvision_old(backbone: DenseNet) -> Layout:
    """The published files still say norm.1, from before module names lost their dots."""
    return _pytorch(".")


def _keras(stem: str, classifier: str) -> Layout:
    layer = "conv{b+1}_block{n+1}_"
    return Layout(rules(
        KERAS.conv("conv0", f"{stem}conv"), KERAS.norm("norm0", f"{stem}bn"),
        KERAS.conv("denseblock{b}/layer{n}/conv{i}", layer + "{i}_conv"),
        KERAS.norm("denseblock{b}/layer{n}/norm{i}", layer + "{i-1}_bn"),
        KERAS.conv("transition{b}/conv", "pool{b+1}_conv"), KERAS.norm("transition{b}/norm", "pool{b+1}_bn"),
        KERAS.norm("norm5", "bn"), KERAS.dense("head/dense", classifier),
    ), input_kernels=INPUT_KERNELS, modules={
        "stem": "pool1", **{f"transition{b}": f"pool{b + 1}_pool" for b in range(1, 4)}, "norm5": "relu"})


def keras(backbone: DenseNet) -> Layout:
    return _keras("conv1_", "predictions")


def keras_old(backbone: DenseNet) -> Layout:
    """Published files of Keras 2 have slashes in two names, and another name of the classifier."""
    return _keras("conv1/", "fc1000")


LAYOUTS = {"torchvision": torchvision, "timm": torchvision, "torchvision_old": torchvision_old, "keras": keras,
           "keras_old": keras_old}
