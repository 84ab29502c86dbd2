"""Vision transformers: the names of torchvision, timm and transformers, and of the .npz of vit_jax and big_vision."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from transfer_jax.models.taps import Backbone
from transfer_jax.models.vit import DinoV2, DistilledViT, ViT
from transfer_jax.pretrained.positions import (
    bicubic,
    bicubic_align_corners,
    bicubic_antialias,
    bilinear_align_corners,
)
from transfer_jax.pretrained.rules.table import (
    AS_IS,
    FLAX,
    TORCH,
    TRANSPOSE,
    Array,
    Layout,
    Op,
    Rule,
    chained,
    part,
    reshaped,
    rules,
    section,
)

PARTS = ("query", "key", "value")
INPUT_KERNELS = ("patches/kernel",)
WITH_BATCH = reshaped((-1,), (1, 1, -1))


def torchvision(backbone: ViT) -> Layout:
    return _torchvision(backbone, ("0", "3"))


def torchvision_old(backbone: ViT) -> Layout:
    """The published files have the names of the perceptron from before it was shared with other models."""
    return _torchvision(backbone, ("linear_1", "linear_2"))


def _torchvision(backbone: ViT, dense: tuple[str, str]) -> Layout:
    block = "encoder.layers.encoder_layer_{b}"
    return Layout(rules(
        Rule("class_token", "class_token", WITH_BATCH), TORCH.conv("patches", "conv_proj"),
        _position_rules(backbone, "encoder.pos_embedding"),
        TORCH.norm("block{b}/norm{i}", f"{block}.ln_{{i}}"),
        packed(f"{block}.self_attention.in_proj_weight", f"{block}.self_attention.in_proj_bias"),
        TORCH.dense("block{b}/attention/out", f"{block}.self_attention.out_proj"),
        *(TORCH.dense(f"block{{b}}/mlp/fc{i}", f"{block}.mlp.{name}") for i, name in enumerate(dense, 1)),
        TORCH.norm("norm", "encoder.ln"), TORCH.dense("head/dense", "heads.head"),
    ), input_kernels=INPUT_KERNELS, resized={"grid_positions": bicubic_align_corners}, modules={
        "embeddings": "encoder.dropout",
        **{f"block{i}": f"encoder.layers.encoder_layer_{i}" for i in range(backbone.layers)}, "tokens": "encoder.ln"})


def timm(backbone: ViT) -> Layout:
    block = "blocks.{b}"
    return Layout(rules(
        Rule("class_token", "cls_token", WITH_BATCH), Rule("distillation_token", "dist_token", WITH_BATCH),
        Rule("registers", "reg_token", reshaped((-1, backbone.width), (1, -1, backbone.width))),
        TORCH.conv("patches", "patch_embed.proj"),
        _position_rules(backbone, "pos_embed"),
        TORCH.norm("block{b}/norm{i}", f"{block}.norm{{i}}"),
        packed(f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias"),
        TORCH.dense("block{b}/attention/out", f"{block}.attn.proj"),
        TORCH.dense("block{b}/mlp/fc{i}", f"{block}.mlp.fc{{i}}"),
        Rule("block{b}/scale{i}", f"{block}.ls{{i}}.gamma"), TORCH.norm("norm", "norm"),
        Rule("pool/probe", "attn_pool.latent", WITH_BATCH), TORCH.dense("pool/attention/query", "attn_pool.q"),
        packed("attn_pool.kv.weight", "attn_pool.kv.bias", "pool", ("key", "value")),
        TORCH.dense("pool/attention/out", "attn_pool.proj"), TORCH.norm("pool/norm", "attn_pool.norm"),
        TORCH.dense("pool/mlp/fc{i}", "attn_pool.mlp.fc{i}"),
        TORCH.dense("head/dense", "head"), TORCH.dense("head/distillation", "head_dist"),
    ), input_kernels=INPUT_KERNELS, resized={"grid_positions": bicubic_antialias}, modules={
        "embeddings": "norm_pre", **_blocks(backbone, "blocks."), "tokens": "norm"})


def transformers(backbone: ViT) -> Layout:
    """The pooler of files without a classifier stays behind: what we pool has no dense layer."""
    return Layout(rules(_encoder("vit.", "vit.embeddings."), TORCH.dense("head/dense", "classifier"),
                        _positions(backbone, "vit.")),
                  ignore=(r"(vit\.)?pooler\..*",), prefix="vit.", input_kernels=INPUT_KERNELS,
                  resized={"grid_positions": bicubic}, modules=_modules(backbone, "vit"))


def deit_transformers(backbone: DistilledViT) -> Layout:
    heads = rules(TORCH.dense("head/dense", "cls_classifier"),
                  TORCH.dense("head/distillation", "distillation_classifier"))
    return Layout(rules(
        _encoder("deit.", "deit.embeddings."),
        Rule("distillation_token", "deit.embeddings.distillation_token", WITH_BATCH), _positions(backbone, "deit."),
        heads if backbone.pool == "both" else TORCH.dense("head/dense", "classifier"),
    ), ignore=(r"(deit\.)?pooler\..*",), prefix="deit.", input_kernels=INPUT_KERNELS,
        resized={"grid_positions": bicubic}, modules=_modules(backbone, "deit"))


def dinov2_transformers(backbone: DinoV2) -> Layout:
    """Files that were made with a classifier have a prefix, which is taken off like any other wrapper."""
    block = "encoder.layer.{b}"
    return Layout(rules(
        Rule("registers", "embeddings.register_tokens", reshaped((-1, backbone.width), (1, -1, backbone.width))),
        Rule("block{b}/scale{i}", f"{block}.layer_scale{{i}}.lambda1"),
        TORCH.norm("block{b}/norm{i}", f"{block}.norm{{i}}"), TORCH.dense("block{b}/mlp/fc{i}", f"{block}.mlp.fc{{i}}"),
        _encoder("", "embeddings."), _positions(backbone, ""),
    ), ignore=(r"embeddings\.mask_token", r"classifier\..*"), input_kernels=INPUT_KERNELS,
        resized={"grid_positions": bicubic_antialias if backbone.registers else bicubic}, extras=_mask_token, modules={
            "embeddings": "embeddings", **_blocks(backbone, "encoder.layer."), "tokens": "layernorm"})


def _modules(backbone: ViT, front: str) -> dict[str, str]:
    """Modules of transformers from version 5 on, which are called otherwise than their tensors in files."""
    return {"embeddings": f"{front}.embeddings", **_blocks(backbone, f"{front}.layers."),
            "tokens": f"{front}.layernorm"}


def _positions(backbone: ViT, front: str) -> tuple[Rule, ...]:
    return _position_rules(backbone, f"{front}embeddings.position_embeddings")


def _encoder(front: str, embeddings: str) -> tuple[Rule, ...]:
    block = f"{front}encoder.layer.{{b}}"
    return rules(
        Rule("class_token", f"{embeddings}cls_token", WITH_BATCH),
        TORCH.conv("patches", f"{embeddings}patch_embeddings.projection"),
        TORCH.norm("block{b}/norm1", f"{block}.layernorm_before"),
        TORCH.norm("block{b}/norm2", f"{block}.layernorm_after"),
        *(TORCH.dense(f"block{{b}}/attention/{name}", f"{block}.attention.attention.{name}") for name in PARTS),
        TORCH.dense("block{b}/attention/out", f"{block}.attention.output.dense"),
        TORCH.dense("block{b}/mlp/fc1", f"{block}.intermediate.dense"),
        TORCH.dense("block{b}/mlp/fc2", f"{block}.output.dense"), TORCH.norm("norm", f"{front}layernorm"))


def packed(weight: str, bias: str, ours: str = "block{b}", parts: tuple[str, ...] = PARTS) -> tuple[Rule, ...]:
    """Query, key and value are equal parts of one tensor, along its outputs."""
    return rules(*(rules(Rule(f"{ours}/attention/{name}/kernel", weight, part(i, len(parts), TRANSPOSE)),
                         Rule(f"{ours}/attention/{name}/bias", bias, part(i, len(parts), AS_IS)))
                   for i, name in enumerate(parts)))


def _position_rules(backbone: ViT, theirs: str) -> tuple[Rule, ...]:
    """Their tensor [1, tokens + patches, D] has the positions of the tokens in front, then those of the patches."""
    tokens, grid = backbone.token_positions, from_square(backbone.width, (1,))
    if not tokens:
        return (Rule("grid_positions", theirs, grid),)
    rows = reshaped((tokens, backbone.width), (1, tokens, backbone.width))
    return rules(Rule("token_positions", theirs, section(0, (tokens,), rows, 1)),
                 Rule("grid_positions", theirs, section(1, (tokens,), grid, 1)))


def from_square(width: int, front: tuple[int, ...] = ()) -> Op:
    """Their rows [*front, n * n, width] as a grid [n, n, width]. Files do not tell the grid: it is taken as square.

    A number of rows that is no square stays flat: the functions of `pretrained.positions` then take our model's grid,
    if the number fits.
    """
    def forward(a: Array) -> Array:
        side = math.isqrt(a.size // width)
        return a.reshape((side, side, width) if side * side * width == a.size else (-1, width))

    return Op("a square of rows as a grid", forward, lambda a: a.reshape(*front, -1, width))


def _blocks(backbone: ViT, front: str) -> dict[str, str]:
    return {f"block{i}": f"{front}{i}" for i in range(backbone.layers)}


def _mask_token(backbone: Backbone, written: Mapping[str, Array]) -> dict[str, Array]:
    """Stood for hidden patches in training; nothing reads it afterwards."""
    del written
    return {"embeddings.mask_token": np.zeros((1, backbone.width), np.float32)}


def vit_jax(backbone: ViT) -> Layout:
    """The authors' archives: layers count on through a block, and the class token has a position.

    These and those of big_vision were trained with activation='gelu_tanh'; timm runs them with the exact one.
    """
    return _archive(backbone, "", "Transformer/posembed_input/pos_embedding", ("LayerNorm_0", "LayerNorm_2"),
                    "MultiHeadDotProductAttention_1", "MlpBlock_3")


def big_vision(backbone: ViT) -> Layout:
    """The class token has no position (set class_position=False), or there is none (pool 'mean' or 'map')."""
    return _archive(backbone, "params/", "pos_embedding", ("LayerNorm_0", "LayerNorm_1"),
                    "MultiHeadDotProductAttention_0", "MlpBlock_0")


def big_vision_scan(backbone: ViT) -> Layout:
    """The blocks of big_vision stacked along the first axis of each of their tensors."""
    return _archive(backbone, "params/", "pos_embedding", ("LayerNorm_0", "LayerNorm_1"),
                    "MultiHeadDotProductAttention_0", "MlpBlock_0", stacked=True)


def _archive(backbone: ViT, prefix: str, positions: str, norms: tuple[str, str], attention: str, mlp: str,
             stacked: bool = False) -> Layout:
    def block(ours: str, theirs: str) -> tuple[Rule, ...]:
        return rules(*(FLAX.norm(f"{ours}/norm{i}", f"{theirs}/{name}") for i, name in enumerate(norms, 1)),
                     _by_heads(backbone, f"{ours}/attention", f"{theirs}/{attention}"),
                     _perceptron(f"{ours}/mlp", f"{theirs}/{mlp}"))

    encoder = f"{prefix}Transformer/"
    if stacked:
        blocks = rules(*(_stacked(block(f"block{i}", f"{encoder}encoderblock"), i, backbone.layers)
                         for i in range(backbone.layers)))
    else:
        blocks = block("block{b}", f"{encoder}encoderblock_{{b}}")
    pool = f"{prefix}MAPHead_0"
    return Layout(rules(
        Rule("class_token", f"{prefix}cls", WITH_BATCH), FLAX.conv("patches", f"{prefix}embedding"),
        _position_rules(backbone, prefix + positions), blocks,
        FLAX.norm("norm", f"{encoder}encoder_norm"), Rule("pool/probe", f"{pool}/probe", WITH_BATCH),
        _by_heads(backbone, "pool/attention", f"{pool}/MultiHeadDotProductAttention_0"),
        FLAX.norm("pool/norm", f"{pool}/LayerNorm_0"), _perceptron("pool/mlp", f"{pool}/MlpBlock_0"),
        FLAX.dense("head/dense", f"{prefix}head"),
    ), prefix=prefix, input_kernels=INPUT_KERNELS, resized={"grid_positions": bilinear_align_corners})


def _stacked(block: tuple[Rule, ...], number: int, count: int) -> tuple[Rule, ...]:
    """The rules of one block for tensors that hold all blocks."""
    slice_of_one = Op("one block of the stack", lambda a: a[0], lambda a: a[None])
    return tuple(Rule(rule.ours, rule.theirs, chained(part(number, count, slice_of_one), rule.op)) for rule in block)


def _by_heads(backbone: ViT, ours: str, theirs: str) -> tuple[Rule, ...]:
    """Kernels have an axis for heads: (D, heads, D / heads), that of the output (heads, D / heads, D)."""
    width, heads, size = backbone.width, backbone.heads, backbone.width // backbone.heads
    inner, outer = (reshaped((width, width), shape) for shape in ((width, heads, size), (heads, size, width)))
    return rules(*(rules(Rule(f"{ours}/{name}/kernel", f"{theirs}/{name}/kernel", inner),
                         Rule(f"{ours}/{name}/bias", f"{theirs}/{name}/bias", reshaped((width,), (heads, size))))
                   for name in PARTS),
                 FLAX.dense(f"{ours}/out", f"{theirs}/out", outer))


def _perceptron(ours: str, theirs: str) -> tuple[Rule, ...]:
    return rules(*(FLAX.dense(f"{ours}/fc{i}", f"{theirs}/Dense_{i - 1}") for i in (1, 2)))


LAYOUTS = {"torchvision": torchvision, "torchvision_old": torchvision_old, "timm": timm, "transformers": transformers,
           "vit_jax": vit_jax, "big_vision": big_vision, "big_vision_scan": big_vision_scan}
DISTILLED = {"timm": timm, "transformers": deit_transformers}
DINOV2 = {"timm": timm, "transformers": dinov2_transformers}
