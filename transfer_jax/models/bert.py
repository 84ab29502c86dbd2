"""BERT (Devlin et al. 2019), and its relatives RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import unknown
from transfer_jax.layers.attention import SelfAttention
from transfer_jax.models.blocks import block_steps, rematerialized
from transfer_jax.models.taps import Backbone, Taps, walk
from transfer_jax.models.text import (
    POOLS,
    Text,
    attention_mask,
    embedding,
    example_text,
    layer_norm,
    normal_init,
    pool_tokens,
    read_text,
    unit_length,
)
from transfer_jax.models.transformer import MLP


class TextEmbeddings(nn.Module):
    """Text [B, T] -> [B, T, width]: vectors of the word, of its position and of its sentence, summed and normalised.

    positions: the longest text. types: kinds of sentences; 0: no such vector. position_offset: row of the first
    position; if not 0, padding takes no position and has the row before the first, as in RoBERTa.
    """

    vocabulary: int
    width: int
    positions: int
    types: int
    position_offset: int
    padding_token: int
    epsilon: float
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, text: Text, train: bool) -> jax.Array:
        x = embedding(self.vocabulary, self.width, self.dtype, "word")(text.tokens)
        if self.types:
            x += embedding(self.types, self.width, self.dtype, "type")(text.types)
        rows = self.positions + self.position_offset
        x += embedding(rows, self.width, self.dtype, "position")(self._positions(text))
        x = layer_norm(self.epsilon, self.dtype, "norm")(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _positions(self, text: Text) -> jax.Array:
        """Row numbers [1 or B, T]."""
        if self.position_offset:
            real = text.tokens != self.padding_token
            return jnp.cumsum(real, 1) * real + self.position_offset - 1
        return jnp.arange(text.tokens.shape[1])[None]


class PostNormBlock(nn.Module):
    """[B, T, D] -> [B, T, D]: attention and perceptron, each summed with its input and then normalised.

    The order of Vaswani et al. (2017). mask: as in `layers.attention.attention`.
    """

    heads: int
    mlp_width: int
    epsilon: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        thinned = nn.Dropout(self.dropout, deterministic=not train)
        y = SelfAttention(self.heads, dropout=self.dropout, dtype=self.dtype, kernel_init=normal_init,
                          name="attention")(x, train, mask)
        x = layer_norm(self.epsilon, self.dtype, "norm1")(x + thinned(y))
        y = MLP(self.mlp_width, self.activation, dtype=self.dtype, kernel_init=normal_init, name="mlp")(x, train)
        return layer_norm(self.epsilon, self.dtype, "norm2")(x + thinned(y))


class Bert(Backbone):
    """An encoder of text, by default BERT-base for uncased English.

    Input: see `models.text.read_text`. Taps: `embeddings`, `block0` ..., `tokens` [B, T, width] (of the last block),
    `pooled` [B, width].

    pool: how tokens become one vector: 'first', 'mean', 'max', 'last', 'pooler' (dense layer and tanh on the first
        token, trained with the encoder) or 'hidden' (the hidden layer of the classifier that the family is published
        with: for RoBERTa dense and tanh, for DistilBERT dense and ReLU). The last two end with dropout.
    normalize: the pooled vector has length 1 (sentence encoders).
    hidden_activation: of 'pooler' and 'hidden', 'tanh' or 'relu'.
    position_offset: see `TextEmbeddings`.
    dropout: of embeddings, attention weights and residual branches; needs the rng 'dropout' in training.
    scan: the blocks' parameters are stacked (`models.blocks`).
    """

    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12
    activation: str = "gelu"
    hidden_activation: str = "tanh"
    position_offset: int = 0
    padding_token: int = 0
    pool: str = "pooler"
    normalize: bool = False
    dropout: float = 0.1
    scan: bool = False

    resumes = False  # masks come from the tokens

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("embeddings", *(f"block{i}" for i in range(self.layers)), "tokens", "pooled")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return example_text(self.positions)

    @nn.compact
    def __call__(self, x: jax.Array | Mapping[str, jax.Array], train: bool = False) -> Taps:
        """int32 [B, T], or a mapping -> taps."""
        text = read_text(x, self.padding_token, self.positions)

        def embed(text: Text) -> jax.Array:
            return TextEmbeddings(
                self.vocabulary, self.width, self.positions, self.types, self.position_offset, self.padding_token,
                self.epsilon, self.dropout, self.dtype, name="embeddings")(text, train)

        def block(name: str, _: int) -> nn.Module:
            return rematerialized(PostNormBlock, self.remat)(self.heads, self.mlp_width, self.epsilon, self.activation,
                                                             self.dropout, self.dtype, name=name)

        return walk(text, self.until, {
            "embeddings": embed,
            **block_steps(block, self.layers, train, attention_mask(text.mask), until=self.until, scan=self.scan),
            "tokens": lambda x: x, "pooled": lambda x: self._pooled(x, text.mask, train)})

    def _pooled(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        if self.pool in ("pooler", "hidden"):
            act = {"tanh": jnp.tanh, "relu": nn.relu}[self.hidden_activation]
            x = act(nn.Dense(self.width, dtype=self.dtype, kernel_init=normal_init, name=self.pool)(x[:, 0]))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        elif self.pool in POOLS:
            x = pool_tokens(x, mask, self.pool)
        else:
            raise unknown("pool", self.pool, (*POOLS, "pooler", "hidden"), "a BERT")
        return unit_length(x) if self.normalize else x


class Roberta(Bert):
    """RoBERTa-base: the encoder of BERT with another vocabulary; positions count real tokens only, from row 2 on."""

    vocabulary: int = 50265
    types: int = 1
    epsilon: float = 1e-5
    position_offset: int = 2
    padding_token: int = 1
    pool: str = "first"


class DistilBert(Bert):
    """DistilBERT-base: half of the blocks, no vectors of the sentence, no pooler."""

    layers: int = 6
    types: int = 0
    hidden_activation: str = "relu"
    pool: str = "first"
