"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.spec import Component
from transfer_jax.models.blocks import block_steps, rematerialized
from transfer_jax.models.taps import Backbone, Taps, walk
from transfer_jax.models.text import (
    attention_mask,
    embedding,
    example_text,
    layer_norm,
    pool_tokens,
    read_text,
    unit_length,
)
from transfer_jax.models.transformer import TransformerBlock


class GPT2(Backbone):
    """A decoder of text, by default the smallest GPT-2. Every token sees itself and those before it.

    Input: see `models.text.read_text`. Texts are padded on the right, if at all: positions count from the left.
    Taps: `embeddings`, `block0` ..., `tokens` [B, T, width] (after the final norm), `logits` [B, T, vocabulary] if
    asked for, `pooled` [B, width].

    padding_token: GPT-2 has none of its own; None: every token of a plain array is real.
    token_logits: adds the tap `logits`, scores of the next token: products of `tokens` with the table of word vectors.
    pool: 'last' real token (the only one that has seen the whole text), 'mean', 'max' or 'first'.
    normalize: the pooled vector has length 1. dropout: of embeddings, attention weights and residual branches; needs
        the rng 'dropout' in training. scan: the blocks' parameters are stacked (`models.blocks`).
    """

    vocabulary: int = 50257
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int | None = None
    positions: int = 1024
    epsilon: float = 1e-5
    activation: str = "gelu_tanh"
    padding_token: int | None = None
    token_logits: bool = False
    pool: str = "last"
    normalize: bool = False
    dropout: float = 0.1
    scan: bool = False

    resumes = False  # masks come from the tokens

    @property
    def tap_names(self) -> tuple[str, ...]:
        blocks = (f"block{i}" for i in range(self.layers))
        return ("embeddings", *blocks, "tokens", *(("logits",) if self.token_logits else ()), "pooled")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return example_text(self.positions)

    @property
    def classifier(self) -> Component | None:
        """None: its own head predicts tokens, see `token_logits`."""
        return None

    @nn.compact
    def __call__(self, x: jax.Array | Mapping[str, jax.Array], train: bool = False) -> Taps:
        """int32 [B, T], or a mapping -> taps."""
        text = read_text(x, self.padding_token, self.positions)
        words = embedding(self.vocabulary, self.width, self.dtype, "word")

        def embed(tokens: jax.Array) -> jax.Array:
            numbers = jnp.arange(tokens.shape[1])[None]
            y = words(tokens) + embedding(self.positions, self.width, self.dtype, "position")(numbers)
            return nn.Dropout(self.dropout, deterministic=not train)(y)

        def block(name: str, _: int) -> nn.Module:
            return rematerialized(TransformerBlock, self.remat)(
                heads=self.heads, mlp_width=self.mlp_width or 4 * self.width, epsilon=self.epsilon,
                activation=self.activation, dropout=self.dropout, causal=True, dtype=self.dtype, name=name)

        mask = None if self.padding_token is None and not isinstance(x, Mapping) else attention_mask(text.mask)
        steps: dict[str, Any] = {
            "embeddings": embed,
            **block_steps(block, self.layers, train, mask, until=self.until, scan=self.scan),
            "tokens": lambda y: layer_norm(self.epsilon, self.dtype, "norm")(y)}
        taps = walk(text.tokens, self.until, steps)
        if self.token_logits and self.until in (None, "logits", "pooled"):
            taps["logits"] = words.attend(taps["tokens"])
        if self.until in (None, "pooled"):
            taps["pooled"] = self._pooled(taps["tokens"], text.mask)
        return taps

    def _pooled(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = pool_tokens(x, mask, self.pool)
        return unit_length(x) if self.normalize else x
