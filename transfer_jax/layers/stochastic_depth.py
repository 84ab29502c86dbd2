"""Stochastic depth: a residual branch that whole examples skip in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class DropPath(nn.Module):
    """Zeroes whole examples at random and scales the others by 1 / (1 - rate) (Huang et al. 2016, eq. 2).

    The factor stands in training, not in evaluation, so that the layer needs nothing when it is off. No parameters; the
    random numbers come from the stream `dropout`. At rate 0 or with `train=False` it returns its input.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, ...] -> [B, ...] in the dtype of `x`."""
        if not train or self.rate == 0:
            return x
        if self.rate >= 1:
            return jnp.zeros_like(x)
        keep = 1 - self.rate
        rows = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, rows)
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))
