"""Vision transformers: ViT (Dosovitskiy et al. 2021), DeiT (Touvron et al. 2021), DINOv2 (Oquab et al. 2023)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component
from transfer_jax.layers.attention import SelfAttention
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import LayerNorm
from transfer_jax.models.blocks import block_steps, rematerialized
from transfer_jax.models.taps import Backbone, Resumed, Taps, walk
from transfer_jax.models.transformer import MLP, TransformerBlock

SIZES = {"tiny": {"width": 192, "layers": 12, "heads": 3}, "small": {"width": 384, "layers": 12, "heads": 6},
         "base": {"width": 768, "layers": 12, "heads": 12}, "large": {"width": 1024, "layers": 24, "heads": 16}}
POOLS = ("token", "mean", "map")
spread = nn.initializers.normal(0.02)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, then a perceptron: [B, T, D] -> [B, D] (Zhai et al. 2022, section 3.2)."""

    heads: int
    mlp_width: int
    epsilon: float = 1e-6
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        probe = self.param("probe", nn.initializers.normal(width ** -0.5), (width,)).astype(self.dtype)
        y = SelfAttention(self.heads, dtype=self.dtype, name="attention")(
            jnp.broadcast_to(probe, (x.shape[0], 1, width)), train, source=x)
        z = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False, name="norm")(y)
        return (y + MLP(self.mlp_width, self.activation, dtype=self.dtype, name="mlp")(z, train))[:, 0]


class ViT(Backbone):
    """ViT, by default ViT-B/16: images [B, H, W, C], both sides divisible by `patch`.

    Taps: `embeddings`, `block0` ..., `tokens` [B, T, width] (behind the last norm), `pooled` [B, width]. Tokens are the
    class token, registers, then the patches row by row. Parameters of positions are made for the size of the image.

    pool: `pooled` is the class 'token', the 'mean' of the patches, or a learned query's attention to all ('map').
    class_position: the class token has a position of its own; else positions are added to patches only.
    registers: tokens without position and without output (Darcet et al. 2024).
    layer_scale: first value of factors per channel on both branches of a block; None: no such parameters.
    epsilon: of all norms; files of transformers have 1e-12.
    dropout: of attention weights and residual branches. drop_path: rate at which an example skips a branch of the last
        block, growing linearly from 0 at the first. scan: the blocks' parameters are stacked.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int | None = None
    patch: int = 16
    pool: str = "token"
    class_token: bool = True
    class_position: bool = True
    registers: int = 0
    layer_scale: float | None = None
    epsilon: float = 1e-6
    activation: str = "gelu"
    qkv_bias: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0
    scan: bool = False

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("embeddings", *(f"block{i}" for i in range(self.layers)), "tokens", "pooled")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the learned tokens in front that may have positions."""
        return ("class_token",) if self.class_token else ()

    @property
    def token_positions(self) -> int:
        """How many rows of positions belong to tokens in front of the patches."""
        return len(self.special_tokens) if self.class_position else 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        self._require(x)
        return walk(x.astype(self.dtype), self.until, {
            "embeddings": self._embed, **self._block_steps(train), "tokens": self._norm,
            "pooled": lambda tokens: self._pool(tokens, train)})

    def _require(self, x: jax.Array | Resumed) -> None:
        if isinstance(x, Resumed):
            return
        if x.shape[1] % self.patch or x.shape[2] % self.patch or not x.shape[1] * x.shape[2]:
            raise UserError(f"images of {x.shape[1]} x {x.shape[2]} pixels do not split into patches of {self.patch}; "
                            f"use multiples of {self.patch}")
        if self.scan and self.drop_path:
            raise UserError("drop_path gives each block its own rate, but scan=True needs equal blocks; "
                            "leave one of the two out")

    def _embed(self, x: jax.Array) -> jax.Array:
        x = Conv(self.width, self.patch, self.patch, 0, dtype=self.dtype, name="patches")(x)
        grid = self.param("grid_positions", spread, x.shape[1:]).astype(self.dtype)
        x = (x + grid).reshape(x.shape[0], -1, self.width)
        front = [self.param(name, spread, (self.width,)) for name in self.special_tokens]
        if self.token_positions:
            front = list(jnp.stack(front) + self.param("token_positions", spread, (len(front), self.width)))
        if self.registers:
            front += list(self.param("registers", spread, (self.registers, self.width)))
        if not front:
            return x
        tokens = jnp.stack(front).astype(self.dtype)
        return jnp.concatenate([jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)), x], 1)

    def _block_steps(self, train: bool) -> dict[str, Any]:
        rates = np.linspace(0.0, self.drop_path, self.layers)

        def block(name: str, number: int) -> nn.Module:
            return rematerialized(TransformerBlock, self.remat)(
                heads=self.heads, mlp_width=self.mlp_width or 4 * self.width, epsilon=self.epsilon,
                activation=self.activation, qkv_bias=self.qkv_bias, layer_scale=self.layer_scale, dropout=self.dropout,
                drop_path=float(rates[number]), dtype=self.dtype, name=name)

        return block_steps(block, self.layers, train, until=self.until, scan=self.scan)

    def _norm(self, x: jax.Array) -> jax.Array:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False, name="norm")(x)

    def _pool(self, tokens: jax.Array, train: bool) -> jax.Array:
        if self.pool == "token" and self.class_token:
            return tokens[:, 0]
        if self.pool == "mean":
            patches = tokens[:, len(self.special_tokens) + self.registers:]
            return patches.mean(1, dtype=jnp.promote_types(self.dtype, jnp.float32)).astype(self.dtype)
        if self.pool == "map":
            return AttentionPool(self.heads, self.mlp_width or 4 * self.width, self.epsilon, self.activation,
                                 self.dtype, name="pool")(tokens, train)
        if self.pool == "token":
            raise UserError("pool='token' needs the class token; set class_token=True, or pool 'mean' or 'map'")
        raise unknown("pool", self.pool, POOLS, "a vision transformer")


class DistilledViT(ViT):
    """DeiT with a distillation token behind the class token, which learned from a teacher (Touvron et al. 2021).

    pool: 'both' as published: `pooled` is the mean of the two tokens, and the head 'distilled' has a classifier for
        each. 'token', 'mean' and 'map' as in ViT, with one classifier.
    """

    pool: str = "both"

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return ("class_token", "distillation_token")

    @property
    def classifier(self) -> Component | None:
        return Component(kind="distilled") if self.pool == "both" else Component(kind="linear", tap="pooled")

    def _pool(self, tokens: jax.Array, train: bool) -> jax.Array:
        return (tokens[:, 0] + tokens[:, 1]) / 2 if self.pool == "both" else super()._pool(tokens, train)


class DinoV2(ViT):
    """DINOv2, a ViT with layer scale that was trained without labels at 518 x 518 pixels; it has no classifier."""

    patch: int = 14
    layer_scale: float | None = 1.0

    @property
    def example(self) -> Any:
        return jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)

    @property
    def classifier(self) -> Component | None:
        return None
