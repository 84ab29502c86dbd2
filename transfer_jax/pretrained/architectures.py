"""Foreign names and configs of architectures -> our backbones with their arguments.

What differs from our family in a way that no argument expresses has no backbone of ours: None, never a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Component = dict[str, Any]

TIMM = {
    **{name: {"kind": name} for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "densenet169", "densenet201",
        "inception_v3", "convnext_tiny", "convnext_small", "convnext_base", "vgg11", "vgg13", "vgg16", "vgg19",
        "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")},
    **{f"{prefix}efficientnet_b{i}": {"kind": f"efficientnet_b{i}", "form": form}
       for prefix, form in (("", "timm"), ("tf_", "timm_tf")) for i in range(8)},
    "mobilenetv2_100": {"kind": "mobilenet_v2"},
    **{f"mobilenetv2_{width:03d}": {"kind": "mobilenet_v2", "width": width / 100} for width in (35, 50, 75, 140)},
    **{f"{prefix}mobilenetv3_{size}_100": {"kind": f"mobilenet_v3_{size}", "form": form}
       for prefix, form in (("", "timm"), ("tf_", "timm_tf")) for size in ("small", "large")},
    "resnetv2_50x1_bit": {"kind": "bit_resnet50"}, "resnetv2_101x1_bit": {"kind": "bit_resnet101"},
    "resnetv2_50x3_bit": {"kind": "bit_resnet50x3"}, "resnetv2_152x2_bit": {"kind": "bit_resnet152x2"},
}
# What timm's `model_args` may say without another architecture.
HARMLESS = {"img_size", "num_classes", "in_chans", "pretrained", "global_pool", "drop_rate", "drop_path_rate",
            "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate"}
PLAIN_POOLING = ("", "avg", "token", "fast")  # what timm's names stand for unless the config says otherwise
VIT_SIZES = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
SWIN_SIZES = {(96, (2, 2, 6, 2)): "tiny", (96, (2, 2, 18, 2)): "small", (128, (2, 2, 18, 2)): "base"}
CONVNEXT_SIZES = {(96, (3, 3, 9, 3)): "tiny", (96, (3, 3, 27, 3)): "small", (128, (3, 3, 27, 3)): "base"}
CLIP_TOWERS = {(768, 32): "b32", (768, 16): "b16", (1024, 14): "l14"}  # width of the image tower, and its patch
CLIP_TEXTS = {(512, 512): "b32", (768, 768): "l14"}  # width of the text tower, and the projection
EFFICIENTNETS = {(1.0, 1.0): 0, (1.0, 1.1): 1, (1.1, 1.2): 2, (1.2, 1.4): 3, (1.4, 1.8): 4, (1.6, 2.2): 5,
                 (1.8, 2.6): 6, (2.0, 3.1): 7}  # factors of width and depth
# What transformers' configs may say of these without another network.
PLAIN_MOBILENET_V2 = {"depth_divisible_by": 8, "min_depth": 8, "expand_ratio": 6, "output_stride": 32,
                      "first_layer_is_expansion": True, "hidden_act": "relu6", "tf_padding": True}
PLAIN_EFFICIENTNET = {
    "depth_divisor": 8, "kernel_sizes": [3, 3, 5, 3, 5, 5, 3], "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320], "strides": [1, 2, 2, 2, 1, 2, 1],
    "num_block_repeats": [1, 2, 2, 3, 3, 4, 1], "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
    "squeeze_expansion_ratio": 0.25, "hidden_act": "swish", "pooling_type": "mean", "batch_norm_momentum": 0.99}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "quick_gelu": "quick_gelu", "relu": "relu"}


def from_timm(architecture: str, arguments: Config, pooling: str = "") -> Component | None:
    """Our component for a timm architecture (the tag behind a point does not matter).

    Args:
        arguments: `model_args` of its config: what was changed of the architecture.
        pooling: `global_pool` of its config.
    """
    name = architecture.split(".")[0]
    pooling = arguments.get("global_pool") or pooling
    if set(arguments) - HARMLESS or pooling not in PLAIN_POOLING:
        return None
    if name in TIMM:
        return dict(TIMM[name])
    return _timm_transformer(name, pooling)


def _timm_transformer(name: str, pooling: str) -> Component | None:
    if found := re.fullmatch(r"swin_(tiny|small|base)_patch4_window(\d+)_\d+", name):
        return {"kind": f"swin_{found[1]}", **({"window": int(found[2])} if found[2] != "7" else {})}
    if pooling == "avg":  # of a vision transformer: another form than the one that bears the name
        return None
    if found := re.fullmatch(r"vit_(?:base|large)_patch(\d+)_clip(_quickgelu)?_\d+", name):
        tower = CLIP_TOWERS.get((768 if "base" in name else 1024, int(found[1])))
        return {"kind": f"clip_image_{tower}", **({} if found[2] else {"activation": "gelu"})} if tower else None
    if found := re.fullmatch(r"vit_(small|base|large)_patch14(?:_reg(\d))?_dinov2", name):
        # timm added the class token's position to the token itself where there are registers.
        more = {"registers": int(found[2]), "class_position": False} if found[2] else {}
        return {"kind": f"dinov2_{found[1]}", **more}
    if found := re.fullmatch(r"(vit|deit)_(tiny|small|base|large)(_distilled)?_patch(\d+)_\d+", name):
        return {"kind": f"{found[1]}_{found[2]}{found[3] or ''}", "patch": int(found[4])}
    return None


def from_transformers(config: Config, pooling: Config) -> Component | None:
    """Our component for a transformers config.

    Args:
        config: absent keys have transformers' own defaults, since files may leave these out.
        pooling: of a sentence encoder, {'pool': ..., 'normalize': ...}.
    """
    make = TRANSFORMERS.get(config["model_type"])
    return {**component, **pooling} if make and (component := make(config)) else None


def published_for(config: Config) -> str:
    """The model class in transformers whose parameters the file holds, '' if it does not say."""
    return str((config.get("architectures") or [""])[0])


def _resnet(config: Config) -> Component | None:
    depths = {("bottleneck", (3, 4, 6, 3)): 50, ("bottleneck", (3, 4, 23, 3)): 101, ("bottleneck", (3, 8, 36, 3)): 152,
              ("basic", (2, 2, 2, 2)): 18, ("basic", (3, 4, 6, 3)): 34}
    layer = config.get("layer_type", "bottleneck")
    depth = depths.get((layer, tuple(config.get("depths", (3, 4, 6, 3)))))
    widths = [256, 512, 1024, 2048] if layer == "bottleneck" else [64, 128, 256, 512]
    changed = (config.get("downsample_in_first_stage"), config.get("downsample_in_bottleneck"))
    plain = list(config.get("hidden_sizes", widths)) == widths and config.get("embedding_size", 64) == 64
    return {"kind": f"resnet{depth}"} if depth and plain and not any(changed) else None


def _bit(config: Config) -> Component | None:
    depth = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101}.get(tuple(config.get("depths", (3, 4, 6, 3))))
    plain = (config.get("layer_type", "preactivation") == "preactivation" and config.get("width_factor", 1) == 1
             and config.get("global_padding") is None and not config.get("embedding_dynamic_padding"))
    return {"kind": f"bit_resnet{depth}"} if depth and plain else None


def _convnext(config: Config) -> Component | None:
    widths, depths = config.get("hidden_sizes") or (96, 192, 384, 768), config.get("depths") or (3, 3, 9, 3)
    size = CONVNEXT_SIZES.get((widths[0], tuple(depths)))
    epsilon = config.get("layer_norm_eps", 1e-12)
    return {"kind": f"convnext_{size}", "final_epsilon": epsilon} if size else None


def _as_told(config: Config, plain: Config) -> bool:
    """Whether the config says nothing else than `plain`."""
    return all(config.get(key, value) == value for key, value in plain.items())


def _mobilenet_v2(config: Config) -> Component | None:
    width = config.get("depth_multiplier", 1.0)
    large_end = width >= 1 or config.get("finegrained_output", True)
    if not _as_told(config, PLAIN_MOBILENET_V2) or not large_end:
        return None
    return {"kind": "mobilenet_v2", "form": "transformers", "width": width,
            "epsilon": config.get("layer_norm_eps", 1e-3)}


def _efficientnet(config: Config) -> Component | None:
    variant = EFFICIENTNETS.get((config.get("width_coefficient", 2.0), config.get("depth_coefficient", 3.1)))
    if variant is None or not _as_told(config, PLAIN_EFFICIENTNET):
        return None
    return {"kind": f"efficientnet_b{variant}", "form": "transformers",
            "symmetric": tuple(config.get("depthwise_padding") or ()), "epsilon": config.get("batch_norm_eps", 1e-3)}


def _vision_size(config: Config) -> str | None:
    sizes = (config.get("hidden_size", 768), config.get("num_hidden_layers", 12), config.get("num_attention_heads", 12))
    plain = config.get("hidden_act", "gelu") == "gelu" and config.get("qkv_bias", True)
    ratio = config.get("intermediate_size", 4 * sizes[0]) == 4 * sizes[0] and config.get("mlp_ratio", 4) == 4
    return VIT_SIZES.get(sizes) if plain and ratio else None


def _vit(family: str, suffix: str = "") -> Callable[[Config], Component | None]:
    def make(config: Config) -> Component | None:
        size = _vision_size(config)
        return {"kind": f"{family}_{size}{suffix}", "patch": config.get("patch_size", 16),
                "epsilon": config.get("layer_norm_eps", 1e-12)} if size else None

    return make


def _deit(config: Config) -> Component | None:
    """With one classifier unless the class name tells of the teacher's; plain DeiTs are published as ViTs."""
    found = _vit("deit", "_distilled")(config)
    alone = published_for(config) == "DeiTForImageClassification"
    return {**found, "pool": "token"} if found and alone else found


def _dinov2(config: Config) -> Component | None:
    size = _vision_size(config)
    if size is None or size == "tiny" or config.get("use_swiglu_ffn") or config.get("patch_size", 14) != 14:
        return None
    with_registers = config["model_type"] == "dinov2_with_registers"
    return {"kind": f"dinov2_{size}", **({"registers": config.get("num_register_tokens", 4)} if with_registers else {})}


def _swin(config: Config) -> Component | None:
    size = SWIN_SIZES.get((config.get("embed_dim", 96), tuple(config.get("depths", (2, 2, 6, 2)))))
    window = config.get("window_size", 7)
    plain = not config.get("use_absolute_embeddings") and config.get("patch_size", 4) == 4
    return {"kind": f"swin_{size}", **({"window": window} if window != 7 else {})} if size and plain else None


def _clip_image(config: Config) -> Component | None:
    told = config.get("vision_config") or config
    tower = CLIP_TOWERS.get((told.get("hidden_size", 768), told.get("patch_size", 32)))
    return {"kind": f"clip_image_{tower}", **_clip_arguments(config, told)} if tower else None


def _clip_text(config: Config) -> Component | None:
    told = config.get("text_config") or config
    tower = CLIP_TEXTS.get((told.get("hidden_size", 512), told.get("projection_dim", 512)))
    end = told.get("eos_token_id", 49407)
    # The first configs had 2 by mistake; with it transformers looks for the largest number.
    return {"kind": f"clip_text_{tower}", **_clip_arguments(config, told),
            **({"end_token": end} if end != 2 else {})} if tower else None


def _clip_arguments(config: Config, told: Config) -> Component:
    found: Component = {}
    if (activation := ACTIVATIONS[told.get("hidden_act", "quick_gelu")]) != "quick_gelu":
        found["activation"] = activation
    if "Projection" not in published_for(config) and config["model_type"] != "clip":
        found["projection"] = None  # a tower without the common space
    return found


def _bert(config: Config) -> Component | None:
    return _encoder("bert", config, {"vocabulary": 30522, "positions": 512, "padding": 0})


def _roberta(config: Config) -> Component | None:
    """Positions are counted from the row behind the padding token's."""
    found = _encoder("roberta", config, {"vocabulary": 50265, "positions": 514, "padding": 1})
    if found is None:
        return None
    offset = found["padding_token"] + 1
    return {**found, "positions": found["positions"] - offset, "position_offset": offset, **_hidden_layer(config)}


def _encoder(kind: str, config: Config, defaults: Mapping[str, int]) -> Component | None:
    activation = ACTIVATIONS.get(config.get("hidden_act", "gelu"))
    absolute = config.get("position_embedding_type", "absolute") == "absolute"
    padding = config.get("pad_token_id", defaults["padding"])
    if activation is None or config.get("is_decoder") or not absolute:
        return None
    return {"kind": kind, "vocabulary": config.get("vocab_size", defaults["vocabulary"]),
            "width": config.get("hidden_size", 768), "layers": config.get("num_hidden_layers", 12),
            "heads": config.get("num_attention_heads", 12), "mlp_width": config.get("intermediate_size", 3072),
            "types": config.get("type_vocab_size", 2), "epsilon": config.get("layer_norm_eps", 1e-12),
            "positions": config.get("max_position_embeddings", defaults["positions"]), "activation": activation,
            "padding_token": defaults["padding"] if padding is None else padding}


def _distilbert(config: Config) -> Component | None:
    activation = ACTIVATIONS.get(config.get("activation", "gelu"))
    return {"kind": "distilbert", "vocabulary": config.get("vocab_size", 30522), "width": config.get("dim", 768),
            "layers": config.get("n_layers", 6), "heads": config.get("n_heads", 12),
            "mlp_width": config.get("hidden_dim", 3072), "positions": config.get("max_position_embeddings", 512),
            "padding_token": config.get("pad_token_id") or 0, "activation": activation,
            **_hidden_layer(config)} if activation else None


def _hidden_layer(config: Config) -> Component:
    """The classifiers of RoBERTa and DistilBERT have a hidden layer, which is a part of our backbone."""
    return {"pool": "hidden"} if "SequenceClassification" in published_for(config) else {}


def _gpt2(config: Config) -> Component | None:
    activation = ACTIVATIONS.get(config.get("activation_function", "gelu_new"))
    plain = config.get("scale_attn_weights", True) and not config.get("scale_attn_by_inverse_layer_idx")
    found = {"kind": "gpt2", "vocabulary": config.get("vocab_size", 50257), "width": config.get("n_embd", 768),
             "layers": config.get("n_layer", 12), "heads": config.get("n_head", 12),
             "positions": config.get("n_positions", 1024), "epsilon": config.get("layer_norm_epsilon", 1e-5),
             "activation": activation}
    if config.get("n_inner"):
        found["mlp_width"] = config["n_inner"]
    return found if activation and plain else None


TRANSFORMERS: dict[str, Callable[[Config], Component | None]] = {
    "resnet": _resnet, "mobilenet_v2": _mobilenet_v2, "efficientnet": _efficientnet,
    "bit": _bit, "convnext": _convnext, "vit": _vit("vit"), "deit": _deit,
    "dinov2": _dinov2, "dinov2_with_registers": _dinov2, "swin": _swin, "clip": _clip_image,
    "clip_vision_model": _clip_image, "clip_text_model": _clip_text, "bert": _bert, "roberta": _roberta,
    "xlm-roberta": _roberta, "distilbert": _distilbert, "gpt2": _gpt2}
