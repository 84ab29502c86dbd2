"""Floor 1: backbones (images -> taps), heads (taps -> outputs) and the model that joins them."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import unknown
from transfer_jax.core.spec import Component, bind
from transfer_jax.models import swin, vit
from transfer_jax.models.alexnet import AlexNet
from transfer_jax.models.bert import Bert, DistilBert, Roberta
from transfer_jax.models.bit import BiTResNet
from transfer_jax.models.cifar_resnet import CifarResNet
from transfer_jax.models.clip import ClipImage, ClipText
from transfer_jax.models.convnext import ConvNeXt
from transfer_jax.models.crepe import CAPACITIES as CREPE_SIZES
from transfer_jax.models.crepe import Crepe
from transfer_jax.models.cross_stitch import CrossStitch
from transfer_jax.models.decoder_head import DecoderHead
from transfer_jax.models.dense_heads import FCNHead, FeaturePyramidHead, SegmentationHead
from transfer_jax.models.densenet import DenseNet
from transfer_jax.models.detection_head import DetectionHead
from transfer_jax.models.doodlenet import DoodleNet
from transfer_jax.models.efficientnet import EfficientNet
from transfer_jax.models.experts import MultiGateExperts, ProgressiveExperts
from transfer_jax.models.fusion import Fusion
from transfer_jax.models.googlenet import GoogLeNet
from transfer_jax.models.gpt2 import GPT2
from transfer_jax.models.heads import (
    ConvReluMeanHead,
    DistilledHead,
    EmbeddingHead,
    LinearHead,
    MLPHead,
    RegressionHead,
)
from transfer_jax.models.inception import InceptionV3
from transfer_jax.models.lenet import LeNet, SmallCNN
from transfer_jax.models.mobilenet_v1 import MobileNetV1
from transfer_jax.models.mobilenet_v2 import MobileNetV2
from transfer_jax.models.mobilenet_v3 import MobileNetV3
from transfer_jax.models.resnet import ResNet
from transfer_jax.models.squeezenet import SqueezeNet
from transfer_jax.models.swin import Swin
from transfer_jax.models.taps import Backbone
from transfer_jax.models.task_attention import TaskAttention
from transfer_jax.models.tiny_darknet import TinyDarknet
from transfer_jax.models.vgg import VGG
from transfer_jax.models.vit import DinoV2, DistilledViT, ViT
from transfer_jax.models.words import WordAverage

BACKBONES = {
    "lenet": LeNet,
    "small_cnn": SmallCNN,
    "alexnet": AlexNet,
    **{f"vgg{depth}": functools.partial(VGG, depth=depth) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": functools.partial(VGG, depth=depth, batch_norm=True) for depth in (11, 13, 16, 19)},
    "squeezenet1_0": functools.partial(SqueezeNet, version="1.0"),
    "squeezenet1_1": functools.partial(SqueezeNet, version="1.1"),
    "googlenet": GoogLeNet,
    "inception_v3": InceptionV3,
    **{f"densenet{depth}": functools.partial(DenseNet, depth=depth) for depth in (121, 169, 201)},
    "cifar_resnet8": functools.partial(CifarResNet, depth=8),
    "cifar_resnet20": functools.partial(CifarResNet, depth=20),
    "cifar_resnet32": functools.partial(CifarResNet, depth=32),
    "cifar_resnet44": functools.partial(CifarResNet, depth=44),
    "cifar_resnet56": functools.partial(CifarResNet, depth=56),
    "cifar_resnet110": functools.partial(CifarResNet, depth=110),
    "mlperf_resnet8": functools.partial(CifarResNet, depth=8, shortcut="B", form="mlperf_tiny"),
    "tiny_darknet": TinyDarknet,
    "doodlenet": DoodleNet,
    **{f"crepe_{size}": functools.partial(Crepe, size=size) for size in CREPE_SIZES},
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v1_retinaface": functools.partial(MobileNetV1, width=0.25, activation="leaky_relu", form="pytorch",
                                                 dropout=0.0),
    "mobilenet_v2": MobileNetV2,
    **{f"mobilenet_v3_{size}": functools.partial(MobileNetV3, size=size) for size in ("small", "large")},
    **{f"efficientnet_b{i}": functools.partial(EfficientNet, variant=i) for i in range(8)},
    "resnet18": functools.partial(ResNet, depth=18),
    "resnet34": functools.partial(ResNet, depth=34),
    "resnet50": functools.partial(ResNet, depth=50),
    "resnet101": functools.partial(ResNet, depth=101),
    "resnet152": functools.partial(ResNet, depth=152),
    "bit_resnet50": functools.partial(BiTResNet, depth=50),
    "bit_resnet101": functools.partial(BiTResNet, depth=101),
    "bit_resnet50x3": functools.partial(BiTResNet, depth=50, width=3),
    "bit_resnet152x2": functools.partial(BiTResNet, depth=152, width=2),
    **{f"convnext_{size}": functools.partial(ConvNeXt, size=size) for size in ("tiny", "small", "base")},
    **{f"vit_{size}": functools.partial(ViT, **sides) for size, sides in vit.SIZES.items()},
    **{f"deit_{size}": functools.partial(ViT, **vit.SIZES[size]) for size in ("tiny", "small", "base")},
    **{f"deit_{size}_distilled": functools.partial(DistilledViT, **vit.SIZES[size])
       for size in ("tiny", "small", "base")},
    **{f"dinov2_{size}": functools.partial(DinoV2, **vit.SIZES[size]) for size in ("small", "base", "large")},
    **{f"swin_{size}": functools.partial(Swin, **sides) for size, sides in swin.SIZES.items()},
    "clip_image_b32": ClipImage,
    "clip_image_b16": functools.partial(ClipImage, patch=16),
    "clip_image_l14": functools.partial(ClipImage, patch=14, width=1024, layers=24, heads=16, projection=768),
    "clip_text_b32": ClipText,
    "clip_text_b16": ClipText,
    "clip_text_l14": functools.partial(ClipText, width=768, heads=12, projection=768),
    "bert": Bert,
    "bert_large": functools.partial(Bert, width=1024, layers=24, heads=16, mlp_width=4096),
    "roberta": Roberta,
    "distilbert": DistilBert,
    "minilm": functools.partial(Bert, width=384, layers=6, mlp_width=1536, pool="mean", normalize=True),
    "gpt2": GPT2,
    "gpt2_medium": functools.partial(GPT2, width=1024, layers=24, heads=16),
}

def _cross_stitch(*, column: dict, tasks: tuple[str, ...], at: tuple[str, ...], other: float = 0.1,
                  dtype: Any = jnp.float32) -> Backbone:
    return CrossStitch(column=build_backbone(Component(**column), dtype, "cross_stitch.column"), tasks=tuple(tasks),
                       at=tuple(at), other=other, dtype=dtype)


# Parts that several tasks or inputs share. All but `cross_stitch` read taps of other backbones, as a stream's `inputs`
# say; none of them comes with published parameters.
SHARING = {
    "fusion": Fusion,
    "multi_gate_experts": MultiGateExperts,
    "progressive_experts": ProgressiveExperts,
    "task_attention": TaskAttention,
    "cross_stitch": _cross_stitch,
    "word_average": WordAverage,
}

HEADS = {
    "linear": LinearHead,
    "mlp": MLPHead,
    "regression": RegressionHead,
    "segmentation": SegmentationHead,
    "fcn": FCNHead,
    "feature_pyramid": FeaturePyramidHead,
    "conv_relu_mean": ConvReluMeanHead,
    "distilled": DistilledHead,
    "detection": DetectionHead,
    "embedding": EmbeddingHead,
    "decoder": DecoderHead,
}


def build_backbone(component: Component, dtype: Any = jnp.float32, where: str = "backbone") -> Backbone:
    """The linen module that `component` names, computing in `dtype` (parameters stay float32)."""
    module = bind({**BACKBONES, **SHARING}, component, "backbone", where, supplied=("dtype",))(dtype=dtype)
    if module.until is not None and module.until not in module.tap_names:
        raise unknown("tap", module.until, module.tap_names, f"{where}.until")
    return module


def build_head(component: Component, dtype: Any = jnp.float32, where: str = "head") -> nn.Module:
    """The linen module that `component` names, computing in `dtype`; its outputs are float32."""
    return bind(HEADS, component, "head", where, supplied=("dtype",))(dtype=dtype)
