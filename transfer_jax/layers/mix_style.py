"""MixStyle: feature maps of one example with the channel statistics of a mixture of two."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mix_style(x: jax.Array, key: jax.Array, *, probability: float = 0.5, alpha: float = 0.1, epsilon: float = 1e-6,
              domains: jax.Array | None = None) -> jax.Array:
    """(l s + (1 - l) s') (x - m) / s + l m + (1 - l) m' (Zhou, Yang, Qiao & Xiang 2021), in training alone.

    m and s are mean and standard deviation of an example's channel over its positions, m' and s' those of another
    example, l ~ Beta(alpha, alpha) per example. Statistics are constants for the gradient, as in the paper. The whole
    batch is mixed or left as it is, with `probability`.

    Args:
      x: float [B, H, W, C].
      key: a typed random key.
      epsilon: added to the variance.
      domains: int [B]: the other example is drawn from another domain; where there is none the example keeps its own
        style. None: a random permutation.

    Returns:
      [B, H, W, C] in the dtype of `x`.
    """
    use, share, partner = jax.random.split(key, 3)
    maps = x.astype(jnp.float32)
    mean = jax.lax.stop_gradient(jnp.mean(maps, axis=(1, 2), keepdims=True))
    deviation = jax.lax.stop_gradient(jnp.sqrt(jnp.var(maps, axis=(1, 2), keepdims=True) + epsilon))
    other = _partners(partner, len(x), domains)
    share = jax.random.beta(share, alpha, alpha, (len(x), 1, 1, 1))
    mixed_mean, mixed_deviation = (share * value + (1 - share) * value[other] for value in (mean, deviation))
    mixed = mixed_deviation * (maps - mean) / deviation + mixed_mean
    return jnp.where(jax.random.bernoulli(use, probability), mixed, maps).astype(x.dtype)


def _partners(key: jax.Array, count: int, domains: jax.Array | None) -> jax.Array:
    """int [count]: whose style each example meets."""
    if domains is None:
        return jax.random.permutation(key, count)
    # The largest of random numbers among the examples of other domains: each of them equally often.
    numbers = jax.random.uniform(key, (count, count))
    foreign = domains[:, None] != domains[None, :]
    chosen = jnp.argmax(jnp.where(foreign, numbers, -1.0), axis=1)
    return jnp.where(jnp.any(foreign, axis=1), chosen, jnp.arange(count))
