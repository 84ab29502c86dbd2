"""What text backbones share: their input, embeddings, and pooling of token vectors to one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown

POOLS = ("first", "mean", "max", "last")
LENGTH = 128  # of the example, as most published comparisons of encoders have it
normal_init = nn.initializers.normal(0.02)


class Text(NamedTuple):
    """tokens: int32 [B, T]. mask: bool [B, T], True at real tokens. types: int32 [B, T], number of the sentence."""

    tokens: jax.Array
    mask: jax.Array
    types: jax.Array


def example_text(positions: int) -> jax.ShapeDtypeStruct:
    """One text of `LENGTH` tokens, or as many as the backbone takes."""
    return jax.ShapeDtypeStruct((1, min(LENGTH, positions)), jnp.int32)


def read_text(x: jax.Array | Mapping[str, jax.Array], padding_token: int | None, positions: int) -> Text:
    """The input of a text backbone, complete.

    Args:
        x: token numbers [B, T], or a mapping with `tokens` and optionally `mask` and `types`, each [B, T].
        padding_token: stands where there is no token, if `mask` does not tell; None: all tokens are real.
        positions: the largest T.
    """
    given = dict(x) if isinstance(x, Mapping) else {"tokens": x}
    if "tokens" not in given or set(given) - set(Text._fields):
        raise UserError(f"a text input has the parts {', '.join(given) or 'none'}; give 'tokens' and, if need be, "
                        f"'mask' and 'types'")
    tokens = given["tokens"]
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise UserError(f"tokens are {tokens.dtype} of shape {tokens.shape}; a text backbone takes integers "
                        f"[examples, tokens]")
    if tokens.shape[1] > positions:
        raise UserError(f"a text of {tokens.shape[1]} tokens is too long for a backbone of {positions} positions; "
                        f"truncate the text")
    mask, types = given.get("mask"), given.get("types")
    if mask is None:
        mask = jnp.ones(tokens.shape, bool) if padding_token is None else tokens != padding_token
    return Text(tokens, mask.astype(bool), jnp.zeros_like(tokens) if types is None else types)


def embedding(rows: int, width: int, dtype: Any, name: str) -> nn.Embed:
    """A table [rows, width]; numbers beyond it give NaN rather than the vector of another token."""
    return nn.Embed(rows, width, dtype=dtype, embedding_init=normal_init, name=name)


def layer_norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Its variance is the mean of squared deviations: the difference of two means would lose digits."""
    return nn.LayerNorm(epsilon, dtype, use_fast_variance=False, name=name)


def attention_mask(mask: jax.Array) -> jax.Array:
    """Padding [B, T] -> which keys the queries of each head may attend to, [B, 1, 1, T]."""
    return mask[:, None, None, :]


def pool_tokens(x: jax.Array, mask: jax.Array, pool: str) -> jax.Array:
    """[B, T, D] -> [B, D] over the real tokens.

    pool: 'first' token (a class token), 'mean', 'max', or the 'last' real one. The mean and the maximum of no token
    are zero.
    """
    if pool == "first":
        return x[:, 0]
    if pool == "last":
        numbers = jnp.arange(x.shape[1])
        return take_token(x, jnp.where(mask, numbers, 0).max(1))
    real = mask[..., None]
    if pool == "mean":
        total = jnp.where(real, x, 0).sum(1, dtype=jnp.promote_types(x.dtype, jnp.float32))
        return (total / jnp.maximum(real.sum(1), 1)).astype(x.dtype)
    if pool == "max":
        return jnp.where(real.any(1), jnp.where(real, x, -jnp.inf).max(1), 0)
    raise unknown("pool", pool, POOLS, "a text backbone")


def take_token(x: jax.Array, number: jax.Array) -> jax.Array:
    """[B, T, D] and one number for each example [B] -> [B, D]."""
    return jnp.take_along_axis(x, number[:, None, None], axis=1)[:, 0]


def unit_length(x: jax.Array) -> jax.Array:
    """[B, D] scaled to Euclidean length 1; zero stays zero."""
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.square(exact).sum(-1, keepdims=True)
    return (exact * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)
