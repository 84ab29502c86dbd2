"""Scaled dot-product attention, and the layer around it with one dense layer each for query, key, value and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.dense import Dense


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None,
              bias: jax.Array | None = None, causal: bool = False, scale: float | None = None,
              drop: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
    """softmax(scale * query key^T + bias) value (Vaswani et al. 2017, eq. 1), the softmax in float32.

    Args:
        query: [B, T, H, D].
        key, value: [B, S, H, D].
        mask: bool, broadcasts to [B, H, T, S]; True where a query may attend. A query that may attend nowhere gives
            zeros.
        bias: float, broadcasts to [B, H, T, S]; added to the scaled products.
        causal: query t may attend to the keys 0..t only (in addition to `mask`).
        scale: 1 / sqrt(D) if None.
        drop: applied to the attention weights [B, H, T, S] (dropout).

    Returns:
        [B, T, H, D] in the dtype of `query`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    additive = mask is not None or bias is not None
    if jax.default_backend() == "gpu" and drop is None and _fits_cudnn(query, key, additive):
        return _fused(query, key, value, mask, bias, causal, scale)
    return _by_products(query, key, value, joined_mask(mask, causal, query.shape[1], key.shape[1]), bias, scale, drop)


def _by_products(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None,
                 scale: float, drop: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
    """Two matrix products per example and head. Scale and normalisation touch [T, D] numbers instead of [T, S]."""
    exact = jnp.promote_types(query.dtype, jnp.float32)
    query, key, value = (jnp.swapaxes(a, 1, 2) for a in (query * jnp.asarray(scale, query.dtype), key, value))
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=exact)
    if bias is not None:
        scores = scores + bias.astype(exact)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    highest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    # A row of minus infinities only has no largest value to subtract: its weights are all zero, and so is its sum.
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(highest), highest, 0))
    total = weights.sum(-1, keepdims=True)
    weights = weights if drop is None else drop(weights)
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights.astype(value.dtype), value, preferred_element_type=exact)
    return jnp.swapaxes(mixed / jnp.where(total == 0, 1, total), 1, 2).astype(value.dtype)


def joined_mask(mask: jax.Array | None, causal: bool, queries: int, keys: int) -> jax.Array | None:
    """`mask` and the lower triangle, where there are any."""
    if not causal:
        return mask
    triangle = jnp.tril(jnp.ones((queries, keys), bool))
    return triangle if mask is None else mask & triangle


def _fits_cudnn(query: jax.Array, key: jax.Array, additive: bool) -> bool:
    """Whether cuDNN's fused kernel takes these arrays, in training too; `additive`: there is a bias or a mask."""
    lengths = query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0 or not additive
    heads = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    # "8.0" and above on a GPU by NVIDIA; other makers have other texts or none.
    generation = str(getattr(jax.devices()[0], "compute_capability", "")).split(".")[0]
    return (query.dtype in (jnp.bfloat16, jnp.float16) and heads and lengths
            and generation.isdigit() and int(generation) >= 8)


def _fused(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None,
           causal: bool, scale: float) -> jax.Array:
    """cuDNN's kernel, which never stores the [T, S] weights."""
    shape = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])

    def four(a: jax.Array | None) -> jax.Array | None:
        return None if a is None else a.reshape((1,) * (4 - a.ndim) + a.shape)

    mask, bias = four(mask), four(bias)
    y = jax.nn.dot_product_attention(query, key, value, None if bias is None else bias.astype(query.dtype), mask,
                                     scale=scale, is_causal=causal, implementation="cudnn")
    if mask is None:
        return y
    allowed = jnp.broadcast_to(joined_mask(mask, causal, *shape[2:]), shape).any(-1)
    return jnp.where(jnp.swapaxes(allowed, 1, 2)[..., None], y, 0)


class Attending(nn.Module):
    """An attention layer. Its queries meet keys and values in the method `mix`, where a method can be intercepted that
    adds to them (`params/inserts.py`)."""

    def mix(self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None,
            causal: bool, drop: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
        """See `attention`."""
        return attention(query, key, value, mask, bias, causal, drop=drop)


class SelfAttention(Attending):
    """Multi-head attention of a sequence to itself, or to a `source` (Vaswani et al. 2017, section 3.2.2).

    Parameters: dense layers `query`, `key`, `value`, `out`, each `kernel` [D, D] and `bias` [D]; head h owns the
    columns h * D / heads and following of the first three, and the same rows of `out`.

    heads: number of heads; divides D. dropout: rate at which attention weights are zeroed in training.
    """

    heads: int
    qkv_bias: bool = True
    out_bias: bool = True
    dropout: float = 0.0
    dtype: Any = None
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None,
                 bias: jax.Array | None = None, causal: bool = False, source: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D]; keys and values come from `source` [B, S, D] (x if None); see `attention`."""
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(f"{self.heads} attention heads do not divide the width {width}; choose a divisor of it")

        def heads(name: str, inputs: jax.Array) -> jax.Array:
            y = Dense(width, self.qkv_bias, self.dtype, kernel_init=self.kernel_init, name=name)(inputs)
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        source = x if source is None else source
        drop = nn.Dropout(self.dropout, deterministic=False) if train and self.dropout else None
        y = self.mix(heads("query", x), heads("key", source), heads("value", source), mask, bias, causal, drop)
        return Dense(width, self.out_bias, self.dtype, kernel_init=self.kernel_init,
                     name="out")(y.reshape(x.shape))
