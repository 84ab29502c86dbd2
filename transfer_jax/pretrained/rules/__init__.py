"""One table per family and foreign layout; registered here by the class of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transfer_jax.models.alexnet import AlexNet
from transfer_jax.models.bert import Bert, DistilBert, Roberta
from transfer_jax.models.bit import BiTResNet
from transfer_jax.models.cifar_resnet import CifarResNet
from transfer_jax.models.clip import ClipImage, ClipText
from transfer_jax.models.convnext import ConvNeXt
from transfer_jax.models.crepe import Crepe
from transfer_jax.models.densenet import DenseNet
from transfer_jax.models.doodlenet import DoodleNet
from transfer_jax.models.efficientnet import EfficientNet
from transfer_jax.models.googlenet import GoogLeNet
from transfer_jax.models.gpt2 import GPT2
from transfer_jax.models.inception import InceptionV3
from transfer_jax.models.mobilenet_v1 import MobileNetV1
from transfer_jax.models.mobilenet_v2 import MobileNetV2
from transfer_jax.models.mobilenet_v3 import MobileNetV3
from transfer_jax.models.resnet import ResNet
from transfer_jax.models.squeezenet import SqueezeNet
from transfer_jax.models.swin import Swin
from transfer_jax.models.taps import Backbone
from transfer_jax.models.tiny_darknet import TinyDarknet
from transfer_jax.models.vgg import VGG
from transfer_jax.models.vit import DinoV2, DistilledViT, ViT
from transfer_jax.pretrained.rules import (
    alexnet,
    bert,
    bit,
    cifar_resnet,
    clip,
    convnext,
    crepe,
    densenet,
    doodlenet,
    efficientnet,
    googlenet,
    gpt2,
    inception,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    resnet,
    squeezenet,
    swin,
    tiny_darknet,
    vgg,
    vit,
)
from transfer_jax.pretrained.rules.table import Layout

LAYOUTS: dict[type[Backbone], Mapping[str, Callable[[Backbone], Layout]]] = {
    AlexNet: alexnet.LAYOUTS,
    Bert: bert.LAYOUTS,
    BiTResNet: bit.LAYOUTS,
    CifarResNet: cifar_resnet.LAYOUTS,
    ClipImage: clip.IMAGE,
    ClipText: clip.TEXT,
    ConvNeXt: convnext.LAYOUTS,
    Crepe: crepe.LAYOUTS,
    DenseNet: densenet.LAYOUTS,
    DinoV2: vit.DINOV2,
    DistilBert: bert.DISTILBERT,
    DistilledViT: vit.DISTILLED,
    DoodleNet: doodlenet.LAYOUTS,
    EfficientNet: efficientnet.LAYOUTS,
    GPT2: gpt2.LAYOUTS,
    GoogLeNet: googlenet.LAYOUTS,
    InceptionV3: inception.LAYOUTS,
    MobileNetV1: mobilenet_v1.LAYOUTS,
    MobileNetV2: mobilenet_v2.LAYOUTS,
    MobileNetV3: mobilenet_v3.LAYOUTS,
    ResNet: resnet.LAYOUTS,
    Roberta: bert.ROBERTA,
    SqueezeNet: squeezenet.LAYOUTS,
    Swin: swin.LAYOUTS,
    TinyDarknet: tiny_darknet.LAYOUTS,
    VGG: vgg.LAYOUTS,
    ViT: vit.LAYOUTS,
}
