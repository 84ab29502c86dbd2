"""GoogLeNet (Szegedy et al. 2015, "Going deeper with convolutions"), with BatchNorm as it is published today."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv, pair
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import ceil_max_pool, global_average, max_pool
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.image_size import require_size
from transfer_jax.models.taps import Backbone, Taps, walk

# Channels of a module: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj (table 1 of the paper).
MODULES = {"3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
           "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
           "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
           "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128)}
POOLS = {"3a": 3, "4a": 3, "5a": 2}  # module: side of the max-pooling window in front of it
LEAST = {"conv2": 3, "inception3a": 7, "inception4a": 15}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images
he_normal = nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class Norm:
    """Settings of the BatchNorm behind every convolution."""

    epsilon: float = 1e-3
    momentum: float = 0.9
    unbiased: bool = True
    use_scale: bool = True


class ConvNormRelu(nn.Module):
    """[B, H, W, C] -> [B, H', W', features]: a convolution without bias, BatchNorm, ReLU. Default padding: half."""

    features: int
    kernel_size: int | tuple[int, int]
    strides: int = 1
    padding: tuple[int, int] | None = None
    norm: Norm = Norm()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        rows, columns = pair(self.kernel_size)
        padding = (rows // 2, columns // 2) if self.padding is None else self.padding
        x = Conv(self.features, (rows, columns), self.strides, padding, use_bias=False, dtype=self.dtype,
                 kernel_init=he_normal, name="conv")(x)
        return nn.relu(BatchNorm(self.norm.momentum, self.norm.epsilon, self.dtype, self.norm.use_scale,
                                 unbiased=self.norm.unbiased, name="bn")(x, train))


class Inception(nn.Module):
    """[B, H, W, C] -> [B, H, W, sum of the four branches' last channels]: 1x1, 3x3, 5x5 and max-pooling side by side.

    channels: see MODULES. large: side of the kernel of the branch that the paper calls 5x5.
    """

    channels: tuple[int, ...]
    large: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def unit(x: jax.Array, features: int, size: int, name: str) -> jax.Array:
            return ConvNormRelu(features, size, dtype=self.dtype, name=name)(x, train)

        c1, reduce3, c3, reduce5, c5, projected = self.channels
        return jnp.concatenate([
            unit(x, c1, 1, "conv1x1"), unit(unit(x, reduce3, 1, "reduce3x3"), c3, 3, "conv3x3"),
            unit(unit(x, reduce5, 1, "reduce5x5"), c5, self.large, "conv5x5"),
            unit(max_pool(x, 3, 1, 1), projected, 1, "pool_proj")], -1)


class GoogLeNet(Backbone):
    """GoogLeNet of 22 layers, without its auxiliary classifiers (they serve training from scratch only).

    Taps: `conv1` (1/2 of the image), `conv2`, `conv3` (1/4), `inception3a`, `inception3b` (1/8), `inception4a` ...
    `inception4e` (1/16), `inception5a`, `inception5b` (1/32), `pooled` [B, 1024]. Max-pooling belongs to the layer
    behind it.
    transform_input: images normalised by ImageNet's mean and standard deviation are brought to (x - 0.5) / 0.5, which
        the published parameters expect.
    large: side of the '5x5' kernels; the published parameters have 3, by a slip; the paper has 5.
    dropout: rate of `pooled`, needs the rng 'dropout' in training.
    """

    transform_input: bool = False
    dropout: float = 0.2
    large: int = 3

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("conv1", "conv2", "conv3", *(f"inception{name}" for name in MODULES), "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        require_size(x, LEAST, self.tap_names, self.until, "GoogLeNet")
        if self.transform_input:
            x = to_half_range(x)

        def unit(features: int, size: int, strides: int, name: str):
            return lambda x: ConvNormRelu(features, size, strides, dtype=self.dtype, name=name)(x, train)

        def inception(name: str):
            block = rematerialized(Inception, self.remat)
            return lambda x: block(MODULES[name], self.large, self.dtype, name=f"inception{name}")(
                ceil_max_pool(x, POOLS[name], 2) if name in POOLS else x, train)

        def pooled(x: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(global_average(x))

        return walk(x.astype(self.dtype), self.until, {
            "conv1": unit(64, 7, 2, "conv1"),
            "conv2": lambda x: unit(64, 1, 1, "conv2")(ceil_max_pool(x, 3, 2)), "conv3": unit(192, 3, 1, "conv3"),
            **{f"inception{name}": inception(name) for name in MODULES}, "pooled": pooled})


def to_half_range(x: jax.Array) -> jax.Array:
    """(v - mean) / std of ImageNet -> (v - 0.5) / 0.5, for images [B, H, W, 3]."""
    if x.shape[-1] != 3:
        raise UserError(f"transform_input needs images of 3 channels, these have {x.shape[-1]}; "
                        f"normalise them by 0.5 and 0.5 yourself and set transform_input to False")
    return x * (2 * jnp.asarray(STD, x.dtype)) + (2 * jnp.asarray(MEAN, x.dtype) - 1)
