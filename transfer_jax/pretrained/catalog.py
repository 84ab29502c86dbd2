"""Published weights that need no address: torchvision's releases by name, and hubs' repositories for each backbone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_jax.core.errors import UserError, unknown

ADDRESS = "https://download.pytorch.org/models/"
BIT = "https://storage.googleapis.com/bit_models/"
VIT = "https://storage.googleapis.com/vit_models/augreg/"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Published:
    """One file of torchvision: its architecture and tag there, our backbone, and how it wants its images.

    crop: side of the square that the network sees; resize: shorter side of the image before the crop. half_range:
    torchvision takes images normalised as everywhere and brings them to (x - 0.5) / 0.5 inside the network; we
    normalise them so at once.
    """

    architecture: str
    tag: str
    file: str
    crop: int
    resize: int
    interpolation: str = "bilinear"
    half_range: bool = False
    backbone: str = ""  # if it is not called as theirs
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def component(self) -> dict[str, Any]:
        """Our backbone."""
        return {"kind": self.backbone or self.architecture, **self.arguments}

    @property
    def mean(self) -> tuple[float, ...]:
        return HALF if self.half_range else IMAGENET_MEAN

    @property
    def std(self) -> tuple[float, ...]:
        return HALF if self.half_range else IMAGENET_STD

    @property
    def url(self) -> str:
        return ADDRESS + self.file


# torchvision 0.28. The newest recipe of an architecture comes last and is the default.
TORCHVISION = (
    Published("alexnet", "V1", "alexnet-owt-7be5be79.pth", 224, 256),
    Published("vgg11", "V1", "vgg11-8a719046.pth", 224, 256),
    Published("vgg13", "V1", "vgg13-19584684.pth", 224, 256),
    Published("vgg16", "V1", "vgg16-397923af.pth", 224, 256),
    Published("vgg19", "V1", "vgg19-dcbb9e9d.pth", 224, 256),
    Published("vgg11_bn", "V1", "vgg11_bn-6002323d.pth", 224, 256),
    Published("vgg13_bn", "V1", "vgg13_bn-abd245e5.pth", 224, 256),
    Published("vgg16_bn", "V1", "vgg16_bn-6c64b313.pth", 224, 256),
    Published("vgg19_bn", "V1", "vgg19_bn-c79401a0.pth", 224, 256),
    Published("resnet18", "V1", "resnet18-f37072fd.pth", 224, 256),
    Published("resnet34", "V1", "resnet34-b627a593.pth", 224, 256),
    Published("resnet50", "V1", "resnet50-0676ba61.pth", 224, 256),
    Published("resnet50", "V2", "resnet50-11ad3fa6.pth", 224, 232),
    Published("resnet101", "V1", "resnet101-63fe2227.pth", 224, 256),
    Published("resnet101", "V2", "resnet101-cd907fc2.pth", 224, 232),
    Published("resnet152", "V1", "resnet152-394f9c45.pth", 224, 256),
    Published("resnet152", "V2", "resnet152-f82ba261.pth", 224, 232),
    Published("googlenet", "V1", "googlenet-1378be20.pth", 224, 256, half_range=True),
    Published("inception_v3", "V1", "inception_v3_google-0cc3c7bd.pth", 299, 342, half_range=True),
    Published("densenet121", "V1", "densenet121-a639ec97.pth", 224, 256),
    Published("densenet169", "V1", "densenet169-b2777c0a.pth", 224, 256),
    Published("densenet201", "V1", "densenet201-c1103571.pth", 224, 256),
    Published("squeezenet1_0", "V1", "squeezenet1_0-b66bff10.pth", 224, 256),
    Published("squeezenet1_1", "V1", "squeezenet1_1-b8a52dc0.pth", 224, 256),
    Published("mobilenet_v2", "V1", "mobilenet_v2-b0353104.pth", 224, 256),
    Published("mobilenet_v2", "V2", "mobilenet_v2-7ebf99e0.pth", 224, 232),
    Published("mobilenet_v3_small", "V1", "mobilenet_v3_small-047dcff4.pth", 224, 256),
    Published("mobilenet_v3_large", "V1", "mobilenet_v3_large-8738ca79.pth", 224, 256),
    Published("mobilenet_v3_large", "V2", "mobilenet_v3_large-5c1a4163.pth", 224, 232),
    Published("efficientnet_b0", "V1", "efficientnet_b0_rwightman-7f5810bc.pth", 224, 256, "bicubic"),
    Published("efficientnet_b1", "V1", "efficientnet_b1_rwightman-bac287d4.pth", 240, 256, "bicubic"),
    Published("efficientnet_b1", "V2", "efficientnet_b1-c27df63c.pth", 240, 255),
    Published("efficientnet_b2", "V1", "efficientnet_b2_rwightman-c35c1473.pth", 288, 288, "bicubic"),
    Published("efficientnet_b3", "V1", "efficientnet_b3_rwightman-b3899882.pth", 300, 320, "bicubic"),
    Published("efficientnet_b4", "V1", "efficientnet_b4_rwightman-23ab8bcd.pth", 380, 384, "bicubic"),
    Published("efficientnet_b5", "V1", "efficientnet_b5_lukemelas-1a07897c.pth", 456, 456, "bicubic"),
    Published("efficientnet_b6", "V1", "efficientnet_b6_lukemelas-24a108a5.pth", 528, 528, "bicubic"),
    Published("efficientnet_b7", "V1", "efficientnet_b7_lukemelas-c5b4e57e.pth", 600, 600, "bicubic"),
    Published("convnext_tiny", "V1", "convnext_tiny-983f1562.pth", 224, 236),
    Published("convnext_small", "V1", "convnext_small-0c510722.pth", 224, 230),
    Published("convnext_base", "V1", "convnext_base-6075fbad.pth", 224, 232),
    Published("vit_b_16", "V1", "vit_b_16-c867db91.pth", 224, 256, backbone="vit_base"),
    Published("vit_b_16", "SWAG_E2E_V1", "vit_b_16_swag-9ac1b537.pth", 384, 384, "bicubic", backbone="vit_base"),
    Published("vit_b_16", "SWAG_LINEAR_V1", "vit_b_16_lc_swag-4e70ced5.pth", 224, 224, "bicubic", backbone="vit_base"),
    Published("vit_l_16", "V1", "vit_l_16-852ce7e3.pth", 224, 242, backbone="vit_large"),
    Published("vit_l_16", "SWAG_E2E_V1", "vit_l_16_swag-4f3808c9.pth", 512, 512, "bicubic", backbone="vit_large"),
    Published("vit_l_16", "SWAG_LINEAR_V1", "vit_l_16_lc_swag-4d563306.pth", 224, 224, "bicubic", backbone="vit_large"),
    Published("vit_b_32", "V1", "vit_b_32-d86f8d99.pth", 224, 256, backbone="vit_base", arguments={"patch": 32}),
    Published("swin_t", "V1", "swin_t-704ceda3.pth", 224, 232, "bicubic", backbone="swin_tiny"),
    Published("swin_s", "V1", "swin_s-5e29d889.pth", 224, 246, "bicubic", backbone="swin_small"),
    Published("swin_b", "V1", "swin_b-68c6b09e.pth", 224, 238, "bicubic", backbone="swin_base"),
)

# Repositories of the hub and files on the web with our backbone's architecture, best known first.
OTHERS = {
    **{f"vgg{depth}{norm}": (f"timm/vgg{depth}{norm}.tv_in1k",) for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    "resnet18": ("timm/resnet18.a1_in1k", "hf://microsoft/resnet-18"),
    "resnet34": ("timm/resnet34.a1_in1k", "hf://microsoft/resnet-34"),
    "resnet50": ("timm/resnet50.a1_in1k", "hf://microsoft/resnet-50"),
    "resnet101": ("timm/resnet101.a1h_in1k", "hf://microsoft/resnet-101"),
    "resnet152": ("timm/resnet152.a1h_in1k", "hf://microsoft/resnet-152"),
    "bit_resnet50": ("timm/resnetv2_50x1_bit.goog_in21k_ft_in1k", f"{BIT}BiT-M-R50x1.npz"),
    "bit_resnet101": ("timm/resnetv2_101x1_bit.goog_in21k_ft_in1k", f"{BIT}BiT-M-R101x1.npz"),
    "bit_resnet50x3": ("timm/resnetv2_50x3_bit.goog_in21k_ft_in1k", f"{BIT}BiT-M-R50x3.npz"),
    "bit_resnet152x2": ("timm/resnetv2_152x2_bit.goog_in21k_ft_in1k",),
    "densenet121": ("timm/densenet121.ra_in1k", f"{KERAS}densenet/densenet121_weights_tf_dim_ordering_tf_kernels.h5"),
    "densenet169": ("timm/densenet169.tv_in1k", f"{KERAS}densenet/densenet169_weights_tf_dim_ordering_tf_kernels.h5"),
    "densenet201": ("timm/densenet201.tv_in1k", f"{KERAS}densenet/densenet201_weights_tf_dim_ordering_tf_kernels.h5"),
    "inception_v3": ("timm/inception_v3.tv_in1k",
                     f"{KERAS}inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5"),
    "mobilenet_v2": ("timm/mobilenetv2_100.ra_in1k",),
    "mobilenet_v3_small": ("timm/mobilenetv3_small_100.lamb_in1k",),
    "mobilenet_v3_large": ("timm/mobilenetv3_large_100.ra_in1k",),
    "efficientnet_b0": ("timm/efficientnet_b0.ra_in1k",), "efficientnet_b1": ("timm/efficientnet_b1.ft_in1k",),
    "efficientnet_b2": ("timm/efficientnet_b2.ra_in1k",), "efficientnet_b3": ("timm/efficientnet_b3.ra2_in1k",),
    "efficientnet_b4": ("timm/efficientnet_b4.ra2_in1k",),
    "efficientnet_b5": ("timm/efficientnet_b5.sw_in12k_ft_in1k",),
    "convnext_tiny": ("timm/convnext_tiny.fb_in1k", "hf://facebook/convnext-tiny-224"),
    "convnext_small": ("timm/convnext_small.fb_in1k", "hf://facebook/convnext-small-224"),
    "convnext_base": ("timm/convnext_base.fb_in1k", "hf://facebook/convnext-base-224"),
    "vit_tiny": ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
                 f"{VIT}Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz"),
    "vit_small": ("timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
                  f"{VIT}S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz"),
    "vit_base": ("timm/vit_base_patch16_224.augreg_in21k_ft_in1k", "hf://google/vit-base-patch16-224",
                 f"{VIT}B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz"),
    "vit_large": ("timm/vit_large_patch16_224.augreg_in21k_ft_in1k", "hf://google/vit-large-patch16-224",
                  f"{VIT}L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1.npz"),
    **{f"deit_{size}": (f"timm/deit_{size}_patch16_224.fb_in1k",) for size in ("tiny", "small", "base")},
    **{f"deit_{size}_distilled": (f"timm/deit_{size}_distilled_patch16_224.fb_in1k",
                                  f"hf://facebook/deit-{size}-distilled-patch16-224")
       for size in ("tiny", "small", "base")},
    **{f"dinov2_{size}": (f"timm/vit_{size}_patch14_dinov2.lvd142m", f"hf://facebook/dinov2-{size}")
       for size in ("small", "base", "large")},
    **{f"swin_{size}": (f"timm/swin_{size}_patch4_window7_224.ms_in1k",
                        f"hf://microsoft/swin-{size}-patch4-window7-224") for size in ("tiny", "small", "base")},
    "clip_image_b32": ("hf://openai/clip-vit-base-patch32", "timm/vit_base_patch32_clip_quickgelu_224.openai"),
    "clip_image_b16": ("hf://openai/clip-vit-base-patch16", "timm/vit_base_patch16_clip_quickgelu_224.openai"),
    "clip_image_l14": ("hf://openai/clip-vit-large-patch14", "timm/vit_large_patch14_clip_quickgelu_224.openai"),
    "clip_text_b32": ("hf://openai/clip-vit-base-patch32",), "clip_text_b16": ("hf://openai/clip-vit-base-patch16",),
    "clip_text_l14": ("hf://openai/clip-vit-large-patch14",),
    "bert": ("hf://google-bert/bert-base-uncased",), "bert_large": ("hf://google-bert/bert-large-uncased",),
    "roberta": ("hf://FacebookAI/roberta-base",), "distilbert": ("hf://distilbert/distilbert-base-uncased",),
    "minilm": ("hf://sentence-transformers/all-MiniLM-L6-v2",), "gpt2": ("hf://openai-community/gpt2",),
    "gpt2_medium": ("hf://openai-community/gpt2-medium",),
}


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Short English names of the 1,000 classes of ILSVRC 2012, in the order of their WordNet numbers."""
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text().splitlines())


def find_published(name: str) -> Published:
    """The file called `architecture` (its newest recipe) or `architecture.TAG` ('V1', or 'IMAGENET1K_V1' in full)."""
    architecture, _, tag = name.partition(".")
    tag = tag.removeprefix("IMAGENET1K_")
    found = [entry for entry in TORCHVISION if entry.architecture == architecture]
    if not found:
        raise unknown("name", f"torchvision/{architecture}",
                      dict.fromkeys(f"torchvision/{entry.architecture}" for entry in TORCHVISION), "the known weights")
    if not tag:
        plain = [entry for entry in found if "SWAG" not in entry.tag]
        return plain[-1]
    tagged = [entry for entry in found if entry.tag == tag]
    if not tagged:
        raise UserError(f"torchvision/{architecture} has no weights {tag!r}; there are: "
                        f"{', '.join(entry.tag for entry in found)}")
    return tagged[0]


def published_file(name: str) -> Published | None:
    """The entry whose file is called `name`, wherever it lies; None for a stranger."""
    return next((entry for entry in TORCHVISION if entry.file == name), None)


def known_sources(backbone: str) -> list[str]:
    """What `source` may say to get published weights of our `backbone`, best first."""
    ours = [entry for entry in TORCHVISION if entry.component["kind"] == backbone]
    newest = dict.fromkeys(f"torchvision/{entry.architecture}" for entry in ours)
    return [*newest, *OTHERS.get(backbone, ())]
