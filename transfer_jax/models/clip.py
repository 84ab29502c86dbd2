"""CLIP (Radford et al. 2021): a vision transformer and a text transformer that map into one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.layers.convolution import Conv
from transfer_jax.models.blocks import block_steps, rematerialized
from transfer_jax.models.taps import Backbone, Resumed, Taps, walk
from transfer_jax.models.text import (
    attention_mask,
    embedding,
    example_text,
    layer_norm,
    read_text,
    take_token,
    unit_length,
)
from transfer_jax.models.transformer import TransformerBlock

EPSILON = 1e-5


class ClipTower(Backbone):
    """What both towers share.

    Taps: `embeddings`, `block0` ..., `tokens` [B, T, width], `features` [B, width], `pooled`.

    projection: size of the common space, `pooled` [B, projection]; None: `pooled` is `features`.
    activation: 'quick_gelu' as published; retrained models (OpenCLIP) have 'gelu'.
    normalize: `pooled` has length 1, so that products are the cosines that CLIP compares.
    dropout: of attention weights and residual branches (CLIP has none). scan: the blocks' parameters are stacked.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int | None = None
    projection: int | None = 512
    activation: str = "quick_gelu"
    epsilon: float = EPSILON
    normalize: bool = False
    dropout: float = 0.0
    scan: bool = False

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("embeddings", *(f"block{i}" for i in range(self.layers)), "tokens", "features", "pooled")

    @property
    def classifier(self) -> Component | None:
        """A linear layer on the features in place of the projection; CLIP itself compares with texts."""
        return Component(kind="linear", tap="pooled") if self.projection is None else None

    def _block_steps(self, train: bool, mask: jax.Array | None, causal: bool) -> dict[str, Any]:
        def block(name: str, _: int) -> nn.Module:
            return rematerialized(TransformerBlock, self.remat)(
                heads=self.heads, mlp_width=self.mlp_width or 4 * self.width, epsilon=self.epsilon,
                activation=self.activation, dropout=self.dropout, causal=causal, dtype=self.dtype, name=name)

        return block_steps(block, self.layers, train, mask, until=self.until, scan=self.scan)

    def _norm(self, name: str) -> nn.LayerNorm:
        return layer_norm(self.epsilon, self.dtype, name)

    def _pooled(self, features: jax.Array) -> jax.Array:
        if self.projection is not None:
            init = nn.initializers.normal(self.width ** -0.5)
            features = nn.Dense(self.projection, use_bias=False, dtype=self.dtype, kernel_init=init,
                                name="projection")(features)
        return unit_length(features) if self.normalize else features


class ClipImage(ClipTower):
    """The image tower, by default ViT-B/32: images [B, H, W, C], both sides divisible by `patch`.

    `embeddings` [B, 1 + patches, width] come after the first norm, the class token first; `features` is the class token
    after the last norm. Parameters of positions are made for the size of the image.
    """

    patch: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if not isinstance(x, Resumed):
            self._require(x)
        return walk(x.astype(self.dtype), self.until, {
            "embeddings": self._embed, **self._block_steps(train, None, False), "tokens": lambda x: x,
            "features": lambda x: self._norm("post_norm")(x[:, 0]), "pooled": self._pooled})

    def _require(self, x: jax.Array) -> None:
        if x.shape[1] % self.patch or x.shape[2] % self.patch or not x.shape[1] * x.shape[2]:
            raise UserError(f"images of {x.shape[1]} x {x.shape[2]} pixels do not split into patches of {self.patch}; "
                            f"use multiples of {self.patch}")

    def _embed(self, x: jax.Array) -> jax.Array:
        spread = nn.initializers.normal(self.width ** -0.5)
        x = Conv(self.width, self.patch, self.patch, 0, use_bias=False, dtype=self.dtype, kernel_init=spread,
                 name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        first = self.param("class_token", spread, (self.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], 1)
        positions = self.param("position_embedding", spread, (x.shape[1], self.width))
        return self._norm("pre_norm")(x + positions.astype(self.dtype))


class ClipText(ClipTower):
    """The text tower, by default that of ViT-B/32. Every token sees itself and those before it.

    Input: see `models.text.read_text`. `tokens` come after the last norm; `features` is the vector of the end of text.

    end_token: its number; the first one in a text counts. None: the largest number of the text, as CLIP does it.
    """

    vocabulary: int = 49408
    width: int = 512
    heads: int = 8
    positions: int = 77
    end_token: int | None = None

    resumes = False  # the end of the text is told by the tokens

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return example_text(self.positions)

    @nn.compact
    def __call__(self, x: jax.Array | Mapping[str, jax.Array], train: bool = False) -> Taps:
        """int32 [B, T], or a mapping -> taps."""
        text = read_text(x, None, self.positions)
        end = (text.tokens if self.end_token is None else text.tokens == self.end_token).argmax(1)
        mask = attention_mask(text.mask) if isinstance(x, Mapping) and "mask" in x else None

        def embed(tokens: jax.Array) -> jax.Array:
            numbers = jnp.arange(tokens.shape[1])[None]
            return (embedding(self.vocabulary, self.width, self.dtype, "word")(tokens)
                    + embedding(self.positions, self.width, self.dtype, "position")(numbers))

        return walk(text.tokens, self.until, {
            "embeddings": embed, **self._block_steps(train, mask, True), "tokens": self._norm("final_norm"),
            "features": lambda x: take_token(x, end), "pooled": self._pooled})
