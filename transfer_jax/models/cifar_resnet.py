"""Residual networks for small images (He et al. 2016, "Deep residual learning", section 4.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import global_average
from transfer_jax.models.taps import Backbone, Taps, walk

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut: [B, H, W, C] -> [B, H / strides, W / strides, features]."""

    features: int
    strides: int
    shortcut: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self._conv(3, self.strides, "conv1")(x)
        y = nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(y, train))
        y = self._conv(3, 1, "conv2")(y)
        y = BatchNorm(dtype=self.dtype, name="bn2")(y, train)
        return nn.relu(y + self._residual(x, train))

    def _conv(self, size: int, strides: int, name: str) -> Conv:
        padding = size // 2
        return Conv(self.features, size, strides, padding, use_bias=False, dtype=self.dtype,
                    kernel_init=he_normal, name=name)

    def _residual(self, x: jax.Array, train: bool) -> jax.Array:
        if self.strides == 1 and x.shape[-1] == self.features:
            return x
        if self.shortcut == "B":
            x = self._conv(1, self.strides, "shortcut_conv")(x)
            return BatchNorm(dtype=self.dtype, name="shortcut_bn")(x, train)
        missing = self.features - x.shape[-1]
        x = x[:, ::self.strides, ::self.strides]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class CifarStage(nn.Module):
    """`blocks` residual blocks, named `block0` ...; the first has the strides of the stage."""

    features: int
    blocks: int
    strides: int
    shortcut: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.blocks):
            strides = self.strides if i == 0 else 1
            x = CifarBlock(self.features, strides, self.shortcut, self.dtype, name=f"block{i}")(x, train)
        return x


class CifarResNet(Backbone):
    """ResNet of depth 6n + 2 with three stages of n blocks at widths 16, 32, 64 times `width`.

    Taps: `stem`, `stage1` (image size), `stage2` (1/2), `stage3` (1/4), `pooled` [B, 64 * width].
    `shortcut`: 'A' (no parameters: subsample and pad the channels with zeros) or 'B' (1x1 convolution).
    """

    depth: int = 20
    width: float = 1.0
    shortcut: str = "A"

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", "stage1", "stage2", "stage3", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.depth < 8 or (self.depth - 2) % 6:
            raise UserError(f"depth={self.depth} of a CIFAR ResNet is not 6n + 2; use 8, 14, 20, 32, 44, 56 or 110")
        if self.shortcut not in ("A", "B"):
            raise UserError(f"shortcut={self.shortcut!r} of a CIFAR ResNet is unknown; use 'A' or 'B'")
        widths = [max(1, round(16 * self.width * 2**i)) for i in range(3)]

        def stem(x):
            x = Conv(widths[0], 3, 1, 1, use_bias=False, dtype=self.dtype, kernel_init=he_normal, name="conv1")(x)
            return nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, train))

        def stage(i):
            blocks = (self.depth - 2) // 6
            return lambda x: CifarStage(widths[i], blocks, 1 if i == 0 else 2, self.shortcut, self.dtype,
                                        name=f"stage{i + 1}")(x, train)

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, "stage1": stage(0), "stage2": stage(1), "stage3": stage(2), "pooled": global_average})
