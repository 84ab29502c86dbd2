"""GPT-2: the names of transformers, which are those of the original release behind `transformer.`."""

from __future__ import annotations

from transfer_jax.models.gpt2 import GPT2
from transfer_jax.pretrained.rules.table import AS_IS, TORCH, Layout, Rule, part, rules

PARTS = ("query", "key", "value")


def transformers(backbone: GPT2) -> Layout:
    """Dense kernels are stored as here, inputs first. The head of tokens is the table of words, once more in memory."""
    block = "transformer.h.{b}"
    return Layout(rules(
        TORCH.embedding("word", "transformer.wte"), TORCH.embedding("position", "transformer.wpe"),
        TORCH.norm("block{b}/norm1", f"{block}.ln_1"), _packed(f"{block}.attn.c_attn"),
        TORCH.dense("block{b}/attention/out", f"{block}.attn.c_proj", AS_IS),
        TORCH.norm("block{b}/norm2", f"{block}.ln_2"),
        TORCH.dense("block{b}/mlp/fc1", f"{block}.mlp.c_fc", AS_IS),
        TORCH.dense("block{b}/mlp/fc2", f"{block}.mlp.c_proj", AS_IS),
        TORCH.norm("norm", "transformer.ln_f"), TORCH.dense("head/dense", "score"),
    ), ignore=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", r"lm_head\.weight"), prefix="transformer.", modules={
        "embeddings": "transformer.drop", **{f"block{i}": f"transformer.h.{i}" for i in range(backbone.layers)},
        "tokens": "transformer.ln_f"})


def _packed(theirs: str) -> tuple[Rule, ...]:
    """Kernel [D, 3 D] and bias [3 D], of which query, key and value are thirds."""
    return rules(*(rules(Rule(f"block{{b}}/attention/{name}/kernel", f"{theirs}.weight", part(i, 3, axis=1)),
                         Rule(f"block{{b}}/attention/{name}/bias", f"{theirs}.bias", part(i, 3)))
                   for i, name in enumerate(PARTS)))


LAYOUTS = {"transformers": transformers}
