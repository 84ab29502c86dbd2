"""Swin: the names of torchvision, timm and transformers.

torchvision has the merging of patches as a stage of its own, timm at the beginning of the next stage (as we have), and
transformers at the end of the one before. All put the four places of a square in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from transfer_jax.layers.window_attention import relative_position_index
from transfer_jax.models.swin import Swin
from transfer_jax.pretrained.positions import bicubic, bilinear_geometric
from transfer_jax.pretrained.rules.table import TORCH, Array, Layout, Rule, rules
from transfer_jax.pretrained.rules.vit import PARTS, from_square, packed

INPUT_KERNELS = ("patches/kernel",)
TABLES = r"stage\d+/block\d+/attention/relative_positions"
BUFFERS = (r".*relative_position_index", r".*attn_mask")  # both follow from the sizes


def torchvision(backbone: Swin) -> Layout:
    stages = _stages(backbone)
    return Layout(rules(
        TORCH.conv("patches", "features.0.0"), TORCH.norm("patches_norm", "features.0.2"),
        *(_block(backbone, s, f"features.{2 * s - 1}", ("0", "3")) for s in stages),
        *(_merging(s, f"features.{2 * s - 2}") for s in stages[1:]),
        TORCH.norm("norm", "norm"), TORCH.dense("head/dense", "head"),
    ), ignore=BUFFERS, input_kernels=INPUT_KERNELS, resized={TABLES: bicubic}, extras=_index, channels_last=True,
        modules={"stem": "features.0", **{f"stage{s}": f"features.{2 * s - 1}" for s in stages}, "norm": "norm"})


def timm(backbone: Swin) -> Layout:
    stages = _stages(backbone)
    return Layout(rules(
        TORCH.conv("patches", "patch_embed.proj"), TORCH.norm("patches_norm", "patch_embed.norm"),
        *(_block(backbone, s, f"layers.{s - 1}.blocks", ("fc1", "fc2")) for s in stages),
        *(_merging(s, f"layers.{s - 1}.downsample") for s in stages[1:]),
        TORCH.norm("norm", "norm"), TORCH.dense("head/dense", "head.fc"),
    ), ignore=BUFFERS, input_kernels=INPUT_KERNELS, resized={TABLES: bilinear_geometric}, channels_last=True,
        modules={"stem": "patch_embed", **{f"stage{s}": f"layers.{s - 1}" for s in stages}, "norm": "norm"})


def transformers(backbone: Swin) -> Layout:
    """Maps are rows of tokens there; the pooled vector of files without a classifier has no parameters."""
    stages, last = _stages(backbone), [depth - 1 for depth in backbone.depths]
    encoder = "swin.encoder.layers"
    return Layout(rules(
        TORCH.conv("patches", "swin.embeddings.patch_embeddings.projection"),
        TORCH.norm("patches_norm", "swin.embeddings.norm"),
        *(_transformers_block(backbone, s, f"{encoder}.{s - 1}.blocks.{{b}}") for s in stages),
        *(_merging(s, f"{encoder}.{s - 2}.downsample") for s in stages[1:]),
        TORCH.norm("norm", "swin.layernorm"), TORCH.dense("head/dense", "classifier"),
    ), ignore=(*BUFFERS, r"swin\.embeddings\.mask_token"), prefix="swin.", input_kernels=INPUT_KERNELS,
        resized={TABLES: bicubic}, channels_last=True, modules={
            "stem": "swin.embeddings", **{f"stage{s}": f"{encoder}.{s - 1}.blocks.{last[s - 1]}" for s in stages},
            "norm": "swin.layernorm"})


def _stages(backbone: Swin) -> range:
    return range(1, len(backbone.depths) + 1)


def _block(backbone: Swin, stage: int, front: str, dense: tuple[str, str]) -> tuple[Rule, ...]:
    ours, theirs = f"stage{stage}/block{{b}}", f"{front}.{{b}}"
    return rules(
        TORCH.norm(f"{ours}/norm{{i}}", f"{theirs}.norm{{i}}"),
        packed(f"{theirs}.attn.qkv.weight", f"{theirs}.attn.qkv.bias", ours),
        TORCH.dense(f"{ours}/attention/out", f"{theirs}.attn.proj"),
        _table(backbone, stage, f"{theirs}.attn.relative_position_bias_table"),
        *(TORCH.dense(f"{ours}/mlp/fc{i}", f"{theirs}.mlp.{name}") for i, name in enumerate(dense, 1)))


def _transformers_block(backbone: Swin, stage: int, theirs: str) -> tuple[Rule, ...]:
    ours = f"stage{stage}/block{{b}}"
    return rules(
        TORCH.norm(f"{ours}/norm1", f"{theirs}.layernorm_before"),
        TORCH.norm(f"{ours}/norm2", f"{theirs}.layernorm_after"),
        *(TORCH.dense(f"{ours}/attention/{name}", f"{theirs}.attention.self.{name}") for name in PARTS),
        TORCH.dense(f"{ours}/attention/out", f"{theirs}.attention.output.dense"),
        _table(backbone, stage, f"{theirs}.attention.self.relative_position_bias_table"),
        TORCH.dense(f"{ours}/mlp/fc1", f"{theirs}.intermediate.dense"),
        TORCH.dense(f"{ours}/mlp/fc2", f"{theirs}.output.dense"))


def _table(backbone: Swin, stage: int, theirs: str) -> Rule:
    return Rule(f"stage{stage}/block{{b}}/attention/relative_positions", theirs,
                from_square(backbone.heads[stage - 1]))


def _merging(stage: int, theirs: str) -> tuple[Rule, ...]:
    return rules(TORCH.norm(f"stage{stage}/merge/norm", f"{theirs}.norm"),
                 TORCH.dense(f"stage{stage}/merge/reduction", f"{theirs}.reduction"))


def _index(backbone: Swin, written: Mapping[str, Array]) -> dict[str, Array]:
    """torchvision keeps the numbers of the rows of each table as a buffer."""
    index = relative_position_index(backbone.window).ravel().astype(np.int64)
    return {name.replace("bias_table", "index"): index for name in written
            if name.endswith("relative_position_bias_table")}


LAYOUTS = {"torchvision": torchvision, "timm": timm, "transformers": transformers}
