"""The block that most transformers are made of (Vaswani et al. 2017), with its norms in front (Xiong et al. 2020)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import unknown
from transfer_jax.layers.attention import SelfAttention
from transfer_jax.layers.dense import Dense
from transfer_jax.layers.materialization import materialized
from transfer_jax.layers.normalization import LayerNorm
from transfer_jax.layers.stochastic_depth import DropPath


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of GELU with which CLIP was trained (Hendrycks & Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": nn.relu,
}


class MLP(nn.Module):
    """Two dense layers `fc1`, `fc2` with an activation between them: [..., D] -> [..., D].

    dropout: behind each of the two; needs the rng 'dropout' in training.
    """

    hidden: int
    activation: str = "gelu"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS, "a transformer")
        y = Dense(self.hidden, dtype=self.dtype, kernel_init=self.kernel_init, name="fc1")(x)
        y = nn.Dropout(self.dropout, deterministic=not train)(ACTIVATIONS[self.activation](y))
        y = Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.kernel_init, name="fc2")(y)
        return nn.Dropout(self.dropout, deterministic=not train)(y)


class TransformerBlock(nn.Module, kw_only=True):
    """[B, T, D] -> [B, T, D]: attention and perceptron, each on the normalised input and added to it.

    layer_scale: first value of learned factors per channel on both branches (Touvron et al. 2021, "Going deeper with
        image transformers", eq. 3); None: no such parameters.
    drop_path: rate at which an example skips a branch. causal: a token sees itself and those before it.
    mask: as in `layers.attention.attention`.
    """

    heads: int
    mlp_width: int
    epsilon: float = 1e-6
    activation: str = "gelu"
    qkv_bias: bool = True
    layer_scale: float | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    causal: bool = False
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        attention = SelfAttention(self.heads, qkv_bias=self.qkv_bias, dropout=self.dropout, dtype=self.dtype,
                                  kernel_init=self.kernel_init, name="attention")
        mlp = MLP(self.mlp_width, self.activation, dtype=self.dtype, kernel_init=self.kernel_init, name="mlp")
        x = self._add(x, attention(self._norm("norm1")(x), train, mask, causal=self.causal), "scale1", train)
        return self._add(x, mlp(self._norm("norm2")(x), train), "scale2", train)

    def _norm(self, name: str) -> nn.Module:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False, name=name)

    def _add(self, x: jax.Array, y: jax.Array, scale: str, train: bool) -> jax.Array:
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        if self.layer_scale is not None:
            factors = self.param(scale, nn.initializers.constant(self.layer_scale), (x.shape[-1],), jnp.float32)
            y = y * factors.astype(y.dtype)
        return materialized(x + DropPath(self.drop_path)(y, train))
