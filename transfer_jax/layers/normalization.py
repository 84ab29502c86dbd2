"""Normalisation layers with the parameters of flax.linen. BatchNorm can be frozen per module."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError

GroupNorm = nn.GroupNorm
LayerNorm = nn.LayerNorm


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015), with the variables of `nn.BatchNorm`.

    Parameters `scale`, `bias` [C]; statistics `batch_stats/mean`, `batch_stats/var` [C], all float32. The stored
    variance is the biased one (divided by N, not N - 1), as in flax, or with `unbiased` the other, as in PyTorch;
    a layer always normalises by the biased one. Statistics are computed in float32 at least in two
    passes (mean first, then the mean of squared deviations), so a large mean does not destroy the variance.

    With `train=True` a layer normalises by its batch and moves its statistics:
    stored = momentum * stored + (1 - momentum) * batch. It does not when the variable collection `live` holds
    `value=False` at the module's path: then it is frozen, uses its stored statistics and leaves them untouched.

    Where the collection `stochastic` holds `rate` there, each channel of a layer that is not frozen normalises by its
    batch with this probability, else by the statistics stored before; all move as ever (StochNorm; Kou et al. 2020,
    section 3). It draws from the rng 'dropout'.

    Where the collection `moments` may be written, every layer normalises by its batch, training or not, moves nothing
    and leaves `mean` and `var` of the batch there.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None
    use_scale: bool = True
    use_bias: bool = True
    unbiased: bool = False
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[..., C] -> [..., C] in `dtype` (that of `x` if None)."""
        channels = (x.shape[-1],)
        stored_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        stored_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32) if self.use_scale else None
        bias = self.param("bias", self.bias_init, channels, jnp.float32) if self.use_bias else None
        live = train and bool(self.get_variable("live", "value", True))
        if self.is_mutable_collection("moments") and not self.is_initializing():
            y, mean, var = _by_batch(self.epsilon, x, scale, bias)
            self.put_variable("moments", "mean", mean)
            self.put_variable("moments", "var", var)
        elif live:
            y, mean, var = _by_batch(self.epsilon, x, scale, bias)
            before = stored_mean.value, stored_var.value
            if not self.is_initializing():
                stored_mean.value = self.momentum * stored_mean.value + (1 - self.momentum) * mean
                kept = var * _bessel(x) if self.unbiased else var
                stored_var.value = self.momentum * stored_var.value + (1 - self.momentum) * kept
            if self.has_variable("stochastic", "rate"):
                own = jax.random.bernoulli(self.make_rng("dropout"), self.get_variable("stochastic", "rate"), channels)
                mean, var = jnp.where(own, mean, before[0]), jnp.where(own, var, before[1])
                y = _standardized(self.epsilon, x, mean, var, scale, bias)
        else:
            y = _standardized(self.epsilon, x, stored_mean.value, stored_var.value, scale, bias)
        return y.astype(self.dtype or x.dtype)


def normalized(x: jax.Array, norm: str | None, name: str, train: bool, dtype: Any, backbone: str) -> jax.Array:
    """[..., C] -> [..., C] by a norm that `backbone` chooses, a submodule `name` of the module that is being run: None,
    'batch', or 'group' of 8 groups or the most below that divide C."""
    if norm is None:
        return x
    if norm == "batch":
        return BatchNorm(dtype=dtype, name=name)(x, train)
    if norm == "group":
        groups = max(n for n in range(1, 9) if x.shape[-1] % n == 0)
        return GroupNorm(num_groups=groups, dtype=dtype, name=name)(x)
    raise UserError(f"norm={norm!r} of backbone {backbone!r} is unknown; use None, 'batch' or 'group'")


def _by_batch(epsilon: float, x: jax.Array, scale: jax.Array | None,
              bias: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x` normalised by its own statistics, float32 at least, and these: mean and biased variance [C]."""
    run = _with_short_gradient if jax.default_backend() == "cpu" else _by_own_statistics
    return run(epsilon, x, scale, bias)


def _by_own_statistics(epsilon: float, x: jax.Array, scale: jax.Array | None,
                       bias: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean, var = _statistics(x)
    return _standardized(epsilon, x, mean, var, scale, bias), mean, var


# The gradient that JAX derives sums over the batch four times and stores what it sums. Written out (Ioffe & Szegedy
# 2015, section 3) it takes two sums, of the gradient and of its product with the image, and one more pass.
_with_short_gradient = jax.custom_vjp(_by_own_statistics, nondiff_argnums=(0,))


def _forward(epsilon: float, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> tuple[tuple, tuple]:
    results = _by_own_statistics(epsilon, x, scale, bias)
    return results, (x, *results[1:], scale, bias)


def _backward(epsilon: float, saved: tuple, cotangents: tuple[jax.Array, jax.Array, jax.Array]) -> tuple:
    (x, mean, var, scale, bias), (to_y, to_mean, to_var) = saved, cotangents
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    centred = x.astype(to_y.dtype) - mean
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = inverse if scale is None else inverse * scale
    total, moment = to_y.sum(axes), (to_y * centred).sum(axes)
    along = (2 * to_var - factor * jnp.square(inverse) * moment) / count
    to_x = to_y * factor + centred * along + (to_mean - factor * total) / count
    return (to_x.astype(x.dtype), None if scale is None else (moment * inverse).astype(scale.dtype),
            None if bias is None else total.astype(bias.dtype))


_with_short_gradient.defvjp(_forward, _backward)


def _standardized(epsilon: float, x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array | None,
                  bias: jax.Array | None) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in float32 at least."""
    factor = jax.lax.rsqrt(var + epsilon)
    factor = factor if scale is None else factor * scale
    y = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) - mean) * factor
    return y if bias is None else y + bias


def _bessel(x: jax.Array) -> float:
    """N / (N - 1) for N values per channel; 1 for a single one, whose variance is zero either way."""
    count = x.size // x.shape[-1]
    return count / max(count - 1, 1)


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, float32 [C]."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)
