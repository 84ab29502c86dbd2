"""VGG: the names of torchvision, timm (whose hidden dense layers are convolutions) and Keras."""

from __future__ import annotations

from transfer_jax.models.vgg import DEPTHS, HIDDEN, VGG
from transfer_jax.pretrained.rules.table import (
    KERAS,
    OIHW,
    POINTWISE,
    TORCH,
    Layout,
    Rule,
    chained,
    dense_after_flatten,
    reshaped,
    rules,
)

COUNTERS = (r".*num_batches_tracked",)
INPUT_KERNELS = ("stage1/conv1/kernel",)
CHANNELS = 512  # of the last map


def _feature(backbone: VGG, stage: int, convolution: int) -> int:
    """Place of a convolution in the sequence of PyTorch: it, BatchNorm if any, ReLU; one pooling behind a stage."""
    depths = DEPTHS[backbone.depth]
    before = sum(depths[:stage - 1]) + convolution - 1
    return before * (3 if backbone.batch_norm else 2) + stage - 1


def _features(backbone: VGG) -> tuple[Rule, ...]:
    return rules(TORCH.conv("stage{s}/conv{i}", lambda s, i: f"features.{_feature(backbone, s, i)}"),
                 TORCH.norm("stage{s}/bn{i}", lambda s, i: f"features.{_feature(backbone, s, i) + 1}"))


def _poolings(backbone: VGG) -> dict[str, str]:
    """The max-pooling behind stage s is what stands before the first convolution of stage s + 1."""
    return {f"stage{s}": f"features.{_feature(backbone, s + 1, 1) - 1}" for s in range(1, 6)}


def torchvision(backbone: VGG) -> Layout:
    side = backbone.pool_size
    return Layout(rules(
        _features(backbone),
        TORCH.dense("fc6", "classifier.0", dense_after_flatten(CHANNELS, side, side)),
        TORCH.dense("fc7", "classifier.3"), TORCH.dense("head/dense", "classifier.6"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS,
        modules={**_poolings(backbone), "fc6": "classifier.1", "fc7": "classifier.4"})


def timm(backbone: VGG) -> Layout:
    """The same network for images up to 224; of larger ones timm averages many outputs of fc6 and fc7."""
    side = backbone.pool_size
    as_conv = chained(OIHW, reshaped((-1, HIDDEN), (side, side, CHANNELS, HIDDEN)))
    return Layout(rules(
        _features(backbone),
        TORCH.conv("fc6", "pre_logits.fc1", as_conv), TORCH.conv("fc7", "pre_logits.fc2", POINTWISE),
        TORCH.dense("head/dense", "head.fc"),
    ), ignore=COUNTERS, input_kernels=INPUT_KERNELS, modules=_poolings(backbone))


def keras(backbone: VGG) -> Layout:
    """Flattened in the order H, W, C, as here."""
    return Layout(rules(
        KERAS.conv("stage{s}/conv{i}", "block{s}_conv{i}"), KERAS.dense("fc6", "fc1"), KERAS.dense("fc7", "fc2"),
        KERAS.dense("head/dense", "predictions"),
    ), input_kernels=INPUT_KERNELS,
        modules={**{f"stage{s}": f"block{s}_pool" for s in range(1, 6)}, "fc6": "fc1", "fc7": "fc2"})


LAYOUTS = {"torchvision": torchvision, "timm": timm, "keras": keras}
