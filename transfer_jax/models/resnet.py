"""Residual networks for large images (He et al. 2016, "Deep residual learning"), in the form known as v1.5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import global_average, max_pool
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.taps import Backbone, Taps, walk

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResidualBlock(nn.Module):
    """[B, H, W, C] -> [B, H / strides, W / strides, outputs]: convolutions with BatchNorm, and a shortcut.

    The basic block has two 3x3 convolutions of `width` channels; a bottleneck 1x1 and 3x3 of `width`, then 1x1 of
    4 * `width`. Its strides lie in the 3x3 (v1.5), or with `stride_first` in the first 1x1, as He et al. published it.
    """

    width: int
    strides: int
    bottleneck: bool
    stride_first: bool
    use_bias: bool
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        outputs = self.width * (EXPANSION if self.bottleneck else 1)
        shortcut = x
        if self.strides > 1 or x.shape[-1] != outputs:
            shortcut = self._conv_norm(x, outputs, 1, self.strides, "shortcut", train)
        if self.bottleneck:
            first, second = (self.strides, 1) if self.stride_first else (1, self.strides)
            x = nn.relu(self._conv_norm(x, self.width, 1, first, "1", train))
            x = nn.relu(self._conv_norm(x, self.width, 3, second, "2", train))
            x = self._conv_norm(x, outputs, 1, 1, "3", train)
        else:
            x = nn.relu(self._conv_norm(x, self.width, 3, self.strides, "1", train))
            x = self._conv_norm(x, outputs, 3, 1, "2", train)
        return nn.relu(x + shortcut)

    def _conv_norm(self, x: jax.Array, features: int, size: int, strides: int, name: str, train: bool) -> jax.Array:
        conv, norm = (f"conv{name}", f"bn{name}") if name.isdigit() else (f"{name}_conv", f"{name}_bn")
        x = Conv(features, size, strides, size // 2, use_bias=self.use_bias, dtype=self.dtype, kernel_init=he_normal,
                 name=conv)(x)
        return BatchNorm(epsilon=self.epsilon, unbiased=True, dtype=self.dtype, name=norm)(x, train)


class ResidualStage(nn.Module):
    """`blocks` residual blocks, named `block0` ...; the first has the strides of the stage."""

    blocks: int
    width: int
    strides: int
    bottleneck: bool
    stride_first: bool
    use_bias: bool
    epsilon: float
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = rematerialized(ResidualBlock, self.remat)
        for i in range(self.blocks):
            x = block(self.width, self.strides if i == 0 else 1, self.bottleneck, self.stride_first, self.use_bias,
                      self.epsilon, self.dtype, name=f"block{i}")(x, train)
        return x


class ResNet(Backbone):
    """ResNet of 18, 34 (basic blocks), 50, 101 or 152 layers (bottlenecks).

    Taps: `stem` (1/4 of the image, after max-pooling), `stage1` (1/4) ... `stage4` (1/32), `pooled` [B, 512 or 2048].
    stride_first: strides in the first 1x1 convolution of a bottleneck (v1) instead of the 3x3 (v1.5).
    use_bias: whether convolutions have biases, as in Keras.
    """

    depth: int = 50
    stride_first: bool = False
    use_bias: bool = False
    epsilon: float = 1e-5

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.depth not in DEPTHS:
            raise UserError(f"depth={self.depth} of a ResNet is unknown; use {', '.join(map(str, DEPTHS))}")

        def stem(x: jax.Array) -> jax.Array:
            x = Conv(64, 7, 2, 3, use_bias=self.use_bias, dtype=self.dtype, kernel_init=he_normal, name="conv1")(x)
            x = BatchNorm(epsilon=self.epsilon, unbiased=True, dtype=self.dtype, name="bn1")(x, train)
            return max_pool(nn.relu(x), 3, 2, 1)

        def stage(i: int):
            return lambda x: ResidualStage(DEPTHS[self.depth][i], 64 * 2**i, 1 if i == 0 else 2, self.depth >= 50,
                                           self.stride_first, self.use_bias, self.epsilon, self.remat, self.dtype,
                                           name=f"stage{i + 1}")(x, train)

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, **{f"stage{i + 1}": stage(i) for i in range(4)}, "pooled": global_average})
