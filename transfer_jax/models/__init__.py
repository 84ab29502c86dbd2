"""Floor 1: backbones (images -> taps), heads (taps -> outputs) and the model that joins them."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import unknown
from transfer_jax.core.spec import Component, bind
from transfer_jax.models.bit import BiTResNet
from transfer_jax.models.cifar_resnet import CifarResNet
from transfer_jax.models.heads import LinearHead, MLPHead, RegressionHead, SegmentationHead
from transfer_jax.models.lenet import LeNet, SmallCNN
from transfer_jax.models.resnet import ResNet
from transfer_jax.models.taps import Backbone

BACKBONES = {
    "lenet": LeNet,
    "small_cnn": SmallCNN,
    "cifar_resnet8": functools.partial(CifarResNet, depth=8),
    "cifar_resnet20": functools.partial(CifarResNet, depth=20),
    "cifar_resnet32": functools.partial(CifarResNet, depth=32),
    "cifar_resnet44": functools.partial(CifarResNet, depth=44),
    "cifar_resnet56": functools.partial(CifarResNet, depth=56),
    "cifar_resnet110": functools.partial(CifarResNet, depth=110),
    "resnet18": functools.partial(ResNet, depth=18),
    "resnet34": functools.partial(ResNet, depth=34),
    "resnet50": functools.partial(ResNet, depth=50),
    "resnet101": functools.partial(ResNet, depth=101),
    "resnet152": functools.partial(ResNet, depth=152),
    "bit_resnet50": functools.partial(BiTResNet, depth=50),
    "bit_resnet101": functools.partial(BiTResNet, depth=101),
    "bit_resnet50x3": functools.partial(BiTResNet, depth=50, width=3),
    "bit_resnet152x2": functools.partial(BiTResNet, depth=152, width=2),
}

HEADS = {
    "linear": LinearHead,
    "mlp": MLPHead,
    "regression": RegressionHead,
    "segmentation": SegmentationHead,
}


def build_backbone(component: Component, dtype: Any = jnp.float32, where: str = "backbone") -> Backbone:
    """The linen module that `component` names, computing in `dtype` (parameters stay float32)."""
    module = bind(BACKBONES, component, "backbone", where, supplied=("dtype",))(dtype=dtype)
    if module.until is not None and module.until not in module.tap_names:
        raise unknown("tap", module.until, module.tap_names, f"{where}.until")
    return module


def build_head(component: Component, dtype: Any = jnp.float32, where: str = "head") -> nn.Module:
    """The linen module that `component` names, computing in `dtype`; its outputs are float32."""
    return bind(HEADS, component, "head", where, supplied=("dtype",))(dtype=dtype)
