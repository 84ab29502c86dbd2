"""BERT, RoBERTa and DistilBERT: the names of transformers and of sentence-transformers."""

from __future__ import annotations

from transfer_jax.models.bert import Bert, DistilBert, Roberta
from transfer_jax.pretrained.rules.table import TORCH, Layout, Rule, rules

# Index buffers, and heads of pretraining: they are no part of the encoder.
IGNORE = (r".*position_ids", r".*token_type_ids", r"cls\..*", r"lm_head\..*", r"vocab_\w+\..*")
SHORT = {"query": "q", "key": "k", "value": "v"}


def transformers(backbone: Bert) -> Layout:
    return _layout(backbone, "bert.", TORCH.dense("head/dense", "classifier"))


def roberta(backbone: Roberta) -> Layout:
    return _layout(backbone, "roberta.", rules(TORCH.dense("hidden", "classifier.dense"),
                                               TORCH.dense("head/dense", "classifier.out_proj")))


def distilbert(backbone: DistilBert) -> Layout:
    prefix = _prefix(backbone, "distilbert.")
    block = f"{prefix}transformer.layer.{{b}}"
    return Layout(rules(
        _embeddings(prefix),
        TORCH.dense("block{b}/attention/{part:query|key|value|out}",
                    lambda b, part: f"{prefix}transformer.layer.{b}.attention.{SHORT.get(part, part)}_lin"),
        TORCH.norm("block{b}/norm1", f"{block}.sa_layer_norm"),
        TORCH.norm("block{b}/norm2", f"{block}.output_layer_norm"),
        TORCH.dense("block{b}/mlp/fc{i}", f"{block}.ffn.lin{{i}}"),
        TORCH.dense("hidden", "pre_classifier"), TORCH.dense("head/dense", "classifier"),
    ), ignore=IGNORE, prefix=prefix, modules={
        "embeddings": f"{prefix}embeddings",
        **{f"block{i}": f"{prefix}transformer.layer.{i}" for i in range(backbone.layers)}})


def _layout(backbone: Bert, name: str, classifier: tuple[Rule, ...]) -> Layout:
    prefix = _prefix(backbone, name)
    block = f"{prefix}encoder.layer.{{b}}"
    unused = () if backbone.pool == "pooler" else (r"(.*\.)?pooler\.dense\.\w+",)
    return Layout(rules(
        _embeddings(prefix),
        TORCH.dense("block{b}/attention/{part:query|key|value}", f"{block}.attention.self.{{part}}"),
        TORCH.dense("block{b}/attention/out", f"{block}.attention.output.dense"),
        TORCH.norm("block{b}/norm1", f"{block}.attention.output.LayerNorm"),
        TORCH.dense("block{b}/mlp/fc1", f"{block}.intermediate.dense"),
        TORCH.dense("block{b}/mlp/fc2", f"{block}.output.dense"),
        TORCH.norm("block{b}/norm2", f"{block}.output.LayerNorm"),
        TORCH.dense("pooler", f"{prefix}pooler.dense"), classifier,
    ), ignore=IGNORE + unused, prefix=prefix, modules={
        "embeddings": f"{prefix}embeddings",
        **{f"block{i}": f"{prefix}encoder.layer.{i}" for i in range(backbone.layers)}})


def _embeddings(prefix: str) -> tuple[Rule, ...]:
    front = f"{prefix}embeddings."
    return rules(TORCH.embedding("embeddings/word", front + "word_embeddings"),
                 TORCH.embedding("embeddings/position", front + "position_embeddings"),
                 TORCH.embedding("embeddings/type", front + "token_type_embeddings"),
                 TORCH.norm("embeddings/norm", front + "LayerNorm"))


def _prefix(backbone: Bert, name: str) -> str:
    """A classifier holds its encoder under a name; a bare encoder, such as that of sentences, has none."""
    return name if backbone.pool in ("pooler", "hidden") else ""


LAYOUTS = {"transformers": transformers}
ROBERTA = {"transformers": roberta}
DISTILBERT = {"transformers": distilbert}
