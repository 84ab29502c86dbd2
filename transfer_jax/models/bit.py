"""Big Transfer networks (Kolesnikov et al. 2020): pre-activation ResNets with GroupNorm and standardised kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import convolve
from transfer_jax.layers.materialization import materialized
from transfer_jax.layers.normalization import GroupNorm
from transfer_jax.layers.pooling import global_average, max_pool
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.taps import Backbone, Taps, walk

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
GROUPS = 32
EXPANSION = 4
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def standardize_kernel(kernel: jax.Array, epsilon: float) -> jax.Array:
    """Weight standardisation (Qiao et al. 2019): [h, w, C, F] with mean 0 and variance 1 for each output channel."""
    centred = kernel - kernel.mean((0, 1, 2))
    return centred * jax.lax.rsqrt(jnp.square(centred).mean((0, 1, 2)) + epsilon)


class StandardizedConv(nn.Module):
    """Convolution without bias whose kernel is standardised, in float32, each time that it is applied."""

    features: int
    kernel_size: int
    strides: int = 1
    epsilon: float = 1e-8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / strides, W / strides, features], padded by half the kernel on every side."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = standardize_kernel(self.param("kernel", he_normal, shape, jnp.float32), self.epsilon)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), (self.strides, self.strides),
                        self.kernel_size // 2)


class PreActivationBlock(nn.Module):
    """Bottleneck, each convolution behind GroupNorm and ReLU: [B, H, W, C] -> [B, H / strides, W / strides, outputs].

    Strides lie in the 3x3. Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    outputs: int
    strides: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        del train
        width = self.outputs // EXPANSION
        active = norm_relu(x, "norm1", self.dtype)
        if self.strides > 1 or x.shape[-1] != self.outputs:
            x = self._conv(self.outputs, 1, self.strides, "shortcut_conv")(active)
        y = norm_relu(self._conv(width, 1, 1, "conv1")(active), "norm2", self.dtype)
        y = norm_relu(self._conv(width, 3, self.strides, "conv2")(y), "norm3", self.dtype)
        return materialized(x + self._conv(self.outputs, 1, 1, "conv3")(y))

    def _conv(self, features: int, size: int, strides: int, name: str) -> StandardizedConv:
        return StandardizedConv(features, size, strides, self.epsilon, self.dtype, name=name)


class PreActivationStage(nn.Module):
    """`blocks` blocks, named `block0` ...; the first has the strides of the stage."""

    blocks: int
    outputs: int
    strides: int
    epsilon: float
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = rematerialized(PreActivationBlock, self.remat)
        for i in range(self.blocks):
            x = block(self.outputs, self.strides if i == 0 else 1, self.epsilon, self.dtype, name=f"block{i}")(x, train)
        return x


class BiTResNet(Backbone):
    """BiT ResNet-v2 of 50, 101 or 152 layers and `width` times the channels.

    Taps: `stem` (1/4 of the image, after max-pooling), `stage1` (1/4) ... `stage4` (1/32), neither of them activated;
    `pooled` [B, 2048 * width] is the mean of the last map behind its GroupNorm and ReLU.
    epsilon: added to the variance of kernels. The converted parameters that are in use today run with 1e-8; the
        authors' own code has 1e-10.
    """

    depth: int = 50
    width: int = 1
    epsilon: float = 1e-8

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.depth not in DEPTHS:
            raise UserError(f"depth={self.depth} of a BiT ResNet is unknown; use {', '.join(map(str, DEPTHS))}")

        def stem(x: jax.Array) -> jax.Array:
            x = StandardizedConv(64 * self.width, 7, 2, self.epsilon, self.dtype, name="conv1")(x)
            # Zeros take part in the maximum: maps are not activated here, so they may win against negative values.
            return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)

        def stage(i: int):
            return lambda x: PreActivationStage(DEPTHS[self.depth][i], 256 * self.width * 2**i, 1 if i == 0 else 2,
                                                self.epsilon, self.remat, self.dtype, name=f"stage{i + 1}")(x, train)

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, **{f"stage{i + 1}": stage(i) for i in range(4)},
            "pooled": lambda x: global_average(norm_relu(x, "norm", self.dtype))})


def norm_relu(x: jax.Array, name: str, dtype: Any) -> jax.Array:
    """GroupNorm with 32 groups, then ReLU. Variance in two passes: a large mean does not destroy it."""
    return nn.relu(GroupNorm(GROUPS, epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)(x))
