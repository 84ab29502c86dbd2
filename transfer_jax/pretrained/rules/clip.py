"""CLIP: the names of transformers and of OpenAI's files for both towers, and of timm for the image tower.

A file may hold both towers: what belongs to the other one, and the scale of their products, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from transfer_jax.models.clip import ClipImage, ClipText, ClipTower
from transfer_jax.models.taps import Backbone
from transfer_jax.pretrained.positions import bicubic, bicubic_antialias, of_square
from transfer_jax.pretrained.rules.table import AS_IS, TORCH, TRANSPOSE, Array, Layout, Rule, part, reshaped, rules

PARTS = {"query": "q", "key": "k", "value": "v"}
INPUT_KERNELS = ("patches/kernel",)
SCALES = r"logit_scale|input_resolution|context_length|vocab_size"  # of the pair, and numbers of OpenAI's archive
WITH_BATCH = reshaped((-1,), (1, 1, -1))


def image_transformers(backbone: ClipImage) -> Layout:
    front = "vision_model.embeddings."
    return Layout(rules(
        Rule("class_token", front + "class_embedding"), TORCH.conv("patches", front + "patch_embedding"),
        Rule("position_embedding", front + "position_embedding.weight"),
        TORCH.norm("pre_norm", "vision_model.pre_layrnorm"), _encoder("vision_model.encoder"),
        TORCH.norm("post_norm", "vision_model.post_layernorm"), TORCH.dense("projection", "visual_projection"),
    ), ignore=(r"text_\w+\..*", r".*position_ids", SCALES), input_kernels=INPUT_KERNELS,
        resized=_resized(bicubic), modules={
            "embeddings": "vision_model.pre_layrnorm", **_blocks(backbone, "vision_model.encoder.layers."),
            "features": "vision_model.post_layernorm"})


def text_transformers(backbone: ClipText) -> Layout:
    front = "text_model.embeddings."
    return Layout(rules(
        TORCH.embedding("word", front + "token_embedding"), TORCH.embedding("position", front + "position_embedding"),
        _encoder("text_model.encoder"), TORCH.norm("final_norm", "text_model.final_layer_norm"),
        TORCH.dense("projection", "text_projection"),
    ), ignore=(r"vision_model\..*", r"visual_projection\..*", r".*position_ids", SCALES), modules={
        "embeddings": "text_model.embeddings", **_blocks(backbone, "text_model.encoder.layers."),
        "tokens": "text_model.final_layer_norm"})


def image_openai(backbone: ClipImage) -> Layout:
    return Layout(rules(
        Rule("class_token", "visual.class_embedding"), TORCH.conv("patches", "visual.conv1"),
        Rule("position_embedding", "visual.positional_embedding"), TORCH.norm("pre_norm", "visual.ln_pre"),
        _resblocks("visual.transformer"), TORCH.norm("post_norm", "visual.ln_post"),
        Rule("projection/kernel", "visual.proj"),
    ), ignore=(r"transformer\..*", r"token_embedding\..*", r"positional_embedding", r"ln_final\..*", r"text_projection",
               SCALES), input_kernels=INPUT_KERNELS, resized=_resized(bicubic_antialias), modules={
        "embeddings": "visual.ln_pre", "features": "visual.ln_post"})


def text_openai(backbone: ClipText) -> Layout:
    return Layout(rules(
        TORCH.embedding("word", "token_embedding"), Rule("position/embedding", "positional_embedding"),
        _resblocks("transformer"), TORCH.norm("final_norm", "ln_final"), Rule("projection/kernel", "text_projection"),
    ), ignore=(r"visual\..*", SCALES), modules={"tokens": "ln_final"})


def image_timm(backbone: ClipImage) -> Layout:
    """timm has a linear head for the projection, with a bias: zero where we have a projection."""
    block = "blocks.{b}"
    unused = (r"head\.bias",) if backbone.projection is not None else ()
    return Layout(rules(
        Rule("class_token", "cls_token", WITH_BATCH), TORCH.conv("patches", "patch_embed.proj"),
        Rule("position_embedding", "pos_embed", reshaped((-1, backbone.width), (1, -1, backbone.width))),
        TORCH.norm("pre_norm", "norm_pre"),
        TORCH.norm("block{b}/norm{i}", f"{block}.norm{{i}}"),
        _packed(f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias"),
        TORCH.dense("block{b}/attention/out", f"{block}.attn.proj"),
        TORCH.dense("block{b}/mlp/fc{i}", f"{block}.mlp.fc{{i}}"),
        TORCH.norm("post_norm", "norm"), TORCH.dense("projection", "head"), TORCH.dense("head/dense", "head"),
    ), ignore=unused, input_kernels=INPUT_KERNELS, resized=_resized(bicubic_antialias), extras=_zero_bias, modules={
        "embeddings": "norm_pre", **_blocks(backbone, "blocks.")})


def _encoder(theirs: str) -> tuple[Rule, ...]:
    """The blocks under the names of transformers."""
    block = f"{theirs}.layers.{{b}}"
    return rules(
        TORCH.norm("block{b}/norm{i}", f"{block}.layer_norm{{i}}"),
        *(TORCH.dense(f"block{{b}}/attention/{ours}", f"{block}.self_attn.{short}_proj")
          for ours, short in PARTS.items()),
        TORCH.dense("block{b}/attention/out", f"{block}.self_attn.out_proj"),
        TORCH.dense("block{b}/mlp/fc{i}", f"{block}.mlp.fc{{i}}"))


def _resblocks(theirs: str) -> tuple[Rule, ...]:
    """The blocks under the names of OpenAI."""
    block = f"{theirs}.resblocks.{{b}}"
    return rules(
        TORCH.norm("block{b}/norm{i}", f"{block}.ln_{{i}}"),
        _packed(f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias"),
        TORCH.dense("block{b}/attention/out", f"{block}.attn.out_proj"),
        TORCH.dense("block{b}/mlp/fc1", f"{block}.mlp.c_fc"), TORCH.dense("block{b}/mlp/fc2", f"{block}.mlp.c_proj"))


def _packed(weight: str, bias: str) -> tuple[Rule, ...]:
    """Query, key and value are thirds of one tensor, along its outputs."""
    return rules(*(rules(Rule(f"block{{b}}/attention/{name}/kernel", weight, part(i, 3, TRANSPOSE)),
                         Rule(f"block{{b}}/attention/{name}/bias", bias, part(i, 3, AS_IS)))
                   for i, name in enumerate(PARTS)))


def _resized(method: Callable[..., Array]) -> dict[str, Callable[..., Array]]:
    """The positions of patches lie behind that of the class token. OpenAI's are resized as OpenCLIP does it."""
    return {"position_embedding": of_square(method, 1)}


def _blocks(backbone: ClipTower, front: str) -> dict[str, str]:
    return {f"block{i}": f"{front}{i}" for i in range(backbone.layers)}


def _zero_bias(backbone: Backbone, written: Mapping[str, Array]) -> dict[str, Array]:
    if "head.weight" not in written or "head.bias" in written:
        return {}
    return {"head.bias": np.zeros(len(written["head.weight"]), written["head.weight"].dtype)}


IMAGE = {"transformers": image_transformers, "timm": image_timm, "openai": image_openai}
TEXT = {"transformers": text_transformers, "openai": text_openai}
