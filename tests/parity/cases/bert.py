"""BERT, RoBERTa, DistilBERT and MiniLM against transformers: classifiers as published, and bare encoders.

Members of published size have all their rows and blocks; the others ("few") differ from them in these numbers only.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.parity import transformers_original
from tests.parity.harness import CLASSES, Case, Inputs
from tests.parity.oracle import framework
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import find_layout

FEW = {"vocabulary": 800, "layers": 2, "positions": 40}
LENGTHS = (11, 7)  # real tokens of the two texts


def _inputs(rng: np.random.Generator, padding: int = 0, types: bool = True) -> Inputs:
    """Two texts of random words, the shorter padded, each of two sentences (0 and 1) where the family knows them."""
    tokens = rng.integers(5, FEW["vocabulary"], (2, LENGTHS[0])).astype(np.int32)
    numbers = np.arange(LENGTHS[0])[None]
    mask = numbers < np.array(LENGTHS)[:, None]
    tokens[~mask] = padding
    given = {"tokens": tokens, "mask": mask}
    theirs = {"input_ids": tokens.astype(np.int64), "attention_mask": mask.astype(np.int64)}
    if types:
        given["types"] = np.where(mask & (numbers >= 4), 1, 0).astype(np.int32)
        theirs["token_type_ids"] = given["types"].astype(np.int64)
    return Inputs(given, kwargs=theirs)


def _config(kind: Any, backbone: Any, **more: Any) -> Any:
    """Configuration of BERT's kind with the numbers of our backbone; what it does not name stays as it is."""
    return kind(vocab_size=backbone.vocabulary, hidden_size=backbone.width, num_hidden_layers=backbone.layers,
                num_attention_heads=backbone.heads, intermediate_size=backbone.mlp_width, num_labels=CLASSES, **more)


def _bert(backbone: Any) -> Any:
    transformers = framework("transformers")
    config = _config(transformers.BertConfig, backbone, max_position_embeddings=backbone.positions)
    if backbone.pool == "pooler":
        return transformers.BertForSequenceClassification(config)
    return transformers.BertModel(config, add_pooling_layer=False)


def _roberta(backbone: Any) -> Any:
    """Its published file has one kind of sentences, and two rows of positions that no token takes."""
    transformers = framework("transformers")
    config = _config(transformers.RobertaConfig, backbone, max_position_embeddings=backbone.positions + 2,
                     type_vocab_size=1, layer_norm_eps=1e-5)
    if backbone.pool == "hidden":
        return transformers.RobertaForSequenceClassification(config)
    return transformers.RobertaModel(config, add_pooling_layer=False)


def _distilbert(backbone: Any) -> Any:
    transformers = framework("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=backbone.vocabulary, dim=backbone.width, n_layers=backbone.layers, n_heads=backbone.heads,
        hidden_dim=backbone.mlp_width, max_position_embeddings=backbone.positions, num_labels=CLASSES)
    if backbone.pool == "hidden":
        return transformers.DistilBertForSequenceClassification(config)
    return transformers.DistilBertModel(config)


def _first(output: Any) -> Any:
    return output.last_hidden_state[:, 0]


def _sentence(output: Any) -> Any:
    """The mean of real tokens, scaled to length 1, as sentence-transformers make it."""
    torch = framework("torch")
    real = torch.arange(LENGTHS[0])[None] < torch.tensor(LENGTHS)[:, None]
    mean = (output.last_hidden_state * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=1)


def _case(kind: str, name: str, make: Any, pool: str, inputs: Any = _inputs, few: bool = True, **more: Any) -> Case:
    arguments = {"dropout": 0.0, "pool": pool, **(FEW if few else {})}
    backbone = build_backbone(Component(kind=kind, **arguments))
    classifies = pool in ("pooler", "hidden")
    taps = find_layout(backbone, "transformers").modules
    layers = ("embeddings/word/embedding", "block1/attention/query/kernel",
              "head/dense/kernel" if classifies else "block1/mlp/fc2/kernel")
    bare = not classifies and make is not _distilbert
    load = functools.partial(transformers_original.load, **({"add_pooling_layer": False} if bare else {}))
    return Case(kind, "transformers", functools.partial(make, backbone), taps, layers, arguments, inputs=inputs,
                classes=CLASSES if classifies else None, name=name, tolerance=1e-4, load=load,
                save=transformers_original.save, **more)


ROBERTA_INPUTS = functools.partial(_inputs, padding=1, types=False)
DISTILBERT_INPUTS = functools.partial(_inputs, types=False)

CASES = [
    _case("bert", "bert_few", _bert, "pooler", smallest=True),
    _case("bert", "bert_few_encoder", _bert, "first", logits=_first),
    _case("bert", "bert", _bert, "pooler", few=False),
    _case("bert_large", "bert_large_few", _bert, "pooler"),
    _case("roberta", "roberta_few", _roberta, "hidden", ROBERTA_INPUTS, smallest=True),
    _case("roberta", "roberta_few_encoder", _roberta, "first", ROBERTA_INPUTS, logits=_first),
    _case("roberta", "roberta", _roberta, "hidden", ROBERTA_INPUTS, few=False),
    _case("distilbert", "distilbert_few", _distilbert, "hidden", DISTILBERT_INPUTS, smallest=True),
    _case("distilbert", "distilbert_few_encoder", _distilbert, "first", DISTILBERT_INPUTS, logits=_first),
    _case("distilbert", "distilbert", _distilbert, "hidden", DISTILBERT_INPUTS, few=False),
    _case("minilm", "minilm_few", _bert, "mean", logits=_sentence, smallest=True),
    _case("minilm", "minilm", _bert, "mean", few=False, logits=_sentence),
]
