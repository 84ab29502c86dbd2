"""ViT, DeiT and DINOv2 against torchvision, timm and transformers."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity import transformers_original
from tests.parity.harness import CLASSES, Case
from tests.parity.oracle import framework
from transfer_jax.models.vit import SIZES

SIDE = 64
TIMM = {"dinov2": "vit_{}_patch14_dinov2", "vit": "vit_{}_patch16_224", "deit": "deit_{}_patch16_224",
        "distilled": "deit_{}_distilled_patch16_224"}
CONFIGS = {"vit": "ViTConfig", "distilled": "DeiTConfig", "dinov2": "Dinov2Config",
           "registers": "Dinov2WithRegistersConfig"}
MODELS = {"vit": "ViTForImageClassification", "distilled": "DeiTForImageClassificationWithTeacher",
          "dinov2": "Dinov2Model", "registers": "Dinov2WithRegistersModel", "deit": "DeiTForImageClassification"}
PREFIXES = {"vit": "vit.", "distilled": "deit.", "deit": "deit.", "dinov2": "", "registers": ""}


def _torchvision(name: str) -> Any:
    return framework("torchvision").models.get_model(name, num_classes=CLASSES, image_size=SIDE)


def _timm(name: str, side: int, classes: int, **more: Any) -> Any:
    return framework("timm").create_model(name, num_classes=classes, img_size=side, **more)


def _transformers(family: str, size: str, side: int) -> Any:
    transformers, sides = framework("transformers"), SIZES[size]
    config = dict(hidden_size=sides["width"], num_hidden_layers=sides["layers"], num_attention_heads=sides["heads"],
                  image_size=side, num_labels=CLASSES)
    if family in ("vit", "deit", "distilled"):
        config["intermediate_size"] = 4 * sides["width"]
    else:
        config["patch_size"] = 14
    made = getattr(transformers, CONFIGS["distilled" if family == "deit" else family])(**config)
    return getattr(transformers, MODELS[family])(made)


def _case(kind: str, layout: str, original: Any, taps: dict[str, str], side: int = SIDE, **more: Any) -> Case:
    headless = kind.startswith("dinov2")
    return Case(kind, layout, original, taps,
                ("patches/kernel", "block1/attention/value/kernel", "norm/scale" if headless else "head/dense/kernel"),
                size=side, classes=None if headless else CLASSES, tolerance=1e-4, **more)


def _blocks(size: str, front: str) -> dict[str, str]:
    return {f"block{i}": f"{front}{i}" for i in range(SIZES[size]["layers"])}


def _of_torchvision(size: str, model: str, patch: int, **more: Any) -> Case:
    taps = {"embeddings": "encoder.dropout", **_blocks(size, "encoder.layers.encoder_layer_"), "tokens": "encoder.ln"}
    return _case(f"vit_{size}", "torchvision", functools.partial(_torchvision, model), taps,
                 arguments={"patch": patch}, **more)


def _of_timm(family: str, kind: str, size: str, side: int = SIDE, **more: Any) -> Case:
    model = more.pop("model", TIMM[family].format(size))
    original = functools.partial(_timm, model, side, 0 if kind.startswith("dinov2") else CLASSES, **more.pop("set", {}))
    taps = {"embeddings": "norm_pre", **_blocks(size, "blocks."), "tokens": "norm"}
    return _case(kind, "timm", original, taps, side, **more)


def _of_transformers(family: str, kind: str, size: str, side: int = SIDE, **more: Any) -> Case:
    front, layers = PREFIXES[family], "layers." if PREFIXES[family] else "encoder.layer."
    taps = {"embeddings": f"{front}embeddings", **_blocks(size, front + layers), "tokens": f"{front}layernorm"}
    arguments = {"epsilon": 1e-12, **more.pop("arguments", {})} if front else more.pop("arguments", {})
    return _case(kind, "transformers", functools.partial(_transformers, family, size, side), taps, side,
                 arguments=arguments, load=transformers_original.load, save=transformers_original.save, logits=_output,
                 **more)


def _output(output: Any) -> Any:
    """The logits, or the last class token of a headless model (its `pooler_output`)."""
    return output.logits if hasattr(output, "logits") else output.pooler_output


DEIT, DINO = ("tiny", "small", "base"), ("small", "base", "large")
CASES = [
    *(_of_timm("vit", f"vit_{size}", size, smallest=size == "tiny") for size in SIZES),
    _of_torchvision("base", "vit_b_16", 16, smallest=True), _of_torchvision("large", "vit_l_16", 16),
    _of_torchvision("base", "vit_b_32", 32, name="vit_base_32"),
    _of_timm("vit", "vit_tiny", "tiny", name="vit_tiny_mean", set={"global_pool": "avg", "fc_norm": False},
             arguments={"pool": "mean"}),
    _of_timm("vit", "vit_tiny", "tiny", name="vit_tiny_map", smallest=True, arguments={"pool": "map",
             "class_token": False}, set={"global_pool": "map", "class_token": False}),
    *(_of_timm("deit", f"deit_{size}", size) for size in DEIT),
    *(_of_timm("distilled", f"deit_{size}_distilled", size, smallest=size == "tiny") for size in DEIT),
    *(_of_timm("dinov2", f"dinov2_{size}", size, 56, smallest=size == "small") for size in DINO),
    *(_of_timm("dinov2", f"dinov2_{size}", size, 56, name=f"dinov2_{size}_registers", smallest=size == "small",
               model=f"vit_{size}_patch14_reg4_dinov2", arguments={"registers": 4, "class_position": False})
      for size in DINO),
    *(_of_transformers("vit", f"vit_{size}", size, smallest=size == "tiny") for size in SIZES),
    *(_of_transformers("distilled", f"deit_{size}_distilled", size, smallest=size == "tiny") for size in DEIT),
    _of_transformers("deit", "deit_tiny_distilled", "tiny", name="deit_tiny_distilled_token",
                     arguments={"pool": "token"}),
    *(_of_transformers("dinov2", f"dinov2_{size}", size, 56, smallest=size == "small") for size in DINO),
    *(_of_transformers("registers", f"dinov2_{size}", size, 56, name=f"dinov2_{size}_registers",
                       smallest=size == "small", arguments={"registers": 4}) for size in DINO),
]
