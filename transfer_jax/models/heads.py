"""Heads: from taps (or one plain array in their place) to the outputs of one task, always float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.pooling import global_average
from transfer_jax.models.taps import Taps, find_tap

POOLS = {"none": lambda x: x, "mean": lambda x: jnp.mean(x, axis=range(1, x.ndim - 1)) if x.ndim > 2 else x}
KERNEL_INITS = {"lecun_normal": nn.initializers.lecun_normal(), "zeros": nn.initializers.zeros}


class LinearHead(nn.Module, kw_only=True):
    """One dense layer on a tap: [B, D] -> [B, classes].

    `pool`: maps [B, H, W, C] and tokens [B, T, D] are flattened ('none') or averaged ('mean').
    `kernel_init`: 'lecun_normal' or 'zeros'.
    """

    classes: int
    tap: str = "pooled"
    pool: str = "none"
    kernel_init: str = "lecun_normal"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: tuple[int, int] | None = None,
                 train: bool = False) -> jax.Array:
        x = _vector(find_tap(taps, self.tap), self.pool)
        return _dense(self.classes, self.dtype, "dense", self.kernel_init)(x).astype(jnp.float32)


class MLPHead(nn.Module, kw_only=True):
    """Hidden dense layers with ReLU and dropout, then a dense layer: [B, D] -> [B, outputs].

    Serves as projector, as task head and, on a plain array, as discriminator; `inputs` is the length of that array
    where it is not the tap's. `dropout` needs the rng 'dropout'; `pool` as in `LinearHead`.
    """

    outputs: int
    tap: str = "pooled"
    pool: str = "none"
    hidden: tuple[int, ...] = (128,)
    inputs: int | None = None
    dropout: float = 0.0
    kernel_init: str = "lecun_normal"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: tuple[int, int] | None = None,
                 train: bool = False) -> jax.Array:
        x = _vector(find_tap(taps, self.tap), self.pool)
        if self.inputs is not None and self.is_initializing():
            x = jnp.zeros((1, self.inputs), x.dtype)
        for i, features in enumerate(self.hidden):
            x = nn.relu(_dense(features, self.dtype, f"dense{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _dense(self.outputs, self.dtype, "output", self.kernel_init)(x).astype(jnp.float32)


class RegressionHead(nn.Module):
    """One dense layer on a tap for real-valued targets: [B, D] -> [B, outputs]."""

    outputs: int = 1
    tap: str = "pooled"
    kernel_init: str = "lecun_normal"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: tuple[int, int] | None = None,
                 train: bool = False) -> jax.Array:
        x = _vector(find_tap(taps, self.tap), "none")
        return _dense(self.outputs, self.dtype, "dense", self.kernel_init)(x).astype(jnp.float32)


class EmbeddingHead(nn.Module):
    """One dense layer on a tap, then division by the Euclidean length: [B, D] -> [B, outputs] of length 1.

    `layer=False` leaves the dense layer out: the features themselves are the vectors, and their length is `outputs`.
    """

    outputs: int
    tap: str = "pooled"
    pool: str = "none"
    layer: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: tuple[int, int] | None = None,
                 train: bool = False) -> jax.Array:
        x = _vector(find_tap(taps, self.tap), self.pool)
        if not self.layer and x.shape[-1] != self.outputs:
            raise UserError(f"the head embedding without a layer gives the {x.shape[-1]} numbers of the tap "
                            f"{self.tap!r}, but its task asks for {self.outputs}; set the task's "
                            f"outputs={x.shape[-1]}")
        x = (_dense(self.outputs, self.dtype, "dense")(x) if self.layer else x).astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-12))


class DistilledHead(nn.Module, kw_only=True):
    """Mean of two classifiers: one on the class token, one on the distillation token behind it.

    For [B, T, D] -> [B, classes]; the head of DeiT (Touvron et al. 2021, section 4) as it is used after distillation:
    `dense` learned from the labels, `distillation` from the teacher.
    """

    classes: int
    tap: str = "tokens"
    kernel_init: str = "lecun_normal"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: tuple[int, int] | None = None,
                 train: bool = False) -> jax.Array:
        x = find_tap(taps, self.tap)
        if x.ndim != 3 or x.shape[1] < 2:
            raise UserError(f"the head distilled needs at least two tokens, but the tap {self.tap!r} has the shape "
                            f"{x.shape}")
        scores = (_dense(self.classes, self.dtype, name, self.kernel_init)(x[:, i]).astype(jnp.float32)
                  for i, name in enumerate(("dense", "distillation")))
        return sum(scores) / 2


class ConvReluMeanHead(nn.Module, kw_only=True):
    """A 1x1 convolution to the classes, ReLU, and the mean over the map: [B, H, W, C] -> [B, classes].

    The classifier of SqueezeNet (Iandola et al. 2016), with dropout in front; `dropout` needs the rng 'dropout'.
    """

    classes: int
    tap: str = "fire9"
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: tuple[int, int] | None = None,
                 train: bool = False) -> jax.Array:
        x = find_tap(taps, self.tap)
        if x.ndim != 4:
            raise UserError(f"the head conv_relu_mean needs a map, but the tap {self.tap!r} has shape {x.shape}")
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = Conv(self.classes, 1, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), name="conv")(x)
        return global_average(nn.relu(x).astype(jnp.float32))


def _vector(x: jax.Array, pool: str) -> jax.Array:
    if pool not in POOLS:
        raise UserError(f"pool={pool!r} of a head is unknown; use one of {', '.join(POOLS)}")
    return POOLS[pool](x).reshape(x.shape[0], -1)


def _dense(features: int, dtype: Any, name: str, kernel_init: str = "lecun_normal") -> nn.Dense:
    if kernel_init not in KERNEL_INITS:
        raise UserError(f"kernel_init={kernel_init!r} of a head is unknown; use one of {', '.join(KERNEL_INITS)}")
    return nn.Dense(features, dtype=dtype, name=name, kernel_init=KERNEL_INITS[kernel_init])
