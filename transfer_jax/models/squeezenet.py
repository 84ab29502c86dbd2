"""SqueezeNet (Iandola et al. 2016): few parameters through 1x1 convolutions that squeeze the channels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.pooling import ceil_max_pool, global_average
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.image_size import require_size
from transfer_jax.models.taps import Backbone, Taps, walk

SQUEEZED = (16, 16, 32, 32, 48, 48, 64, 64)  # of fire2 ... fire9; each expands to eight times as many channels
# Version: channels and size of the first kernel, fire modules that begin with pooling, least image sides.
VERSIONS = {"1.0": (96, 7, (2, 5, 9), {"conv1": 7, "fire2": 9, "fire5": 13, "fire9": 21}),
            "1.1": (64, 3, (2, 4, 6), {"conv1": 3, "fire2": 5, "fire4": 9, "fire6": 17})}
he_uniform = nn.initializers.he_uniform()


class Fire(nn.Module):
    """[B, H, W, C] -> [B, H, W, 8 * squeezed]: a 1x1 convolution, then 1x1 and 3x3 side by side, all with ReLU."""

    squeezed: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        del train
        x = self._conv(x, self.squeezed, 1, "squeeze")
        expanded = 4 * self.squeezed
        return jnp.concatenate([self._conv(x, expanded, 1, "expand1x1"), self._conv(x, expanded, 3, "expand3x3")], -1)

    def _conv(self, x: jax.Array, features: int, size: int, name: str) -> jax.Array:
        return nn.relu(Conv(features, size, 1, size // 2, dtype=self.dtype, kernel_init=he_uniform, name=name)(x))


class SqueezeNet(Backbone):
    """SqueezeNet '1.0', or '1.1' with a smaller first kernel and earlier pooling (2.4 times fewer operations).

    Taps: `conv1` (1/2 of the image), `fire2` ... `fire9` (1/4 to 1/16), `pooled` [B, 512]. Max-pooling belongs to the
    module behind it. The published classifier sits on `fire9`.
    """

    version: str = "1.1"

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("conv1", *(f"fire{i}" for i in range(2, 10)), "pooled")

    @property
    def classifier(self) -> Component:
        return Component(kind="conv_relu_mean", tap="fire9")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.version not in VERSIONS:
            raise UserError(f"version={self.version!r} of SqueezeNet is unknown; use '1.0' or '1.1'")
        features, size, pooled, least = VERSIONS[self.version]
        require_size(x, least, self.tap_names, self.until, f"SqueezeNet {self.version}")

        def conv1(x: jax.Array) -> jax.Array:
            return nn.relu(Conv(features, size, 2, 0, dtype=self.dtype, kernel_init=he_uniform, name="conv1")(x))

        def fire(i: int):
            block = rematerialized(Fire, self.remat)
            return lambda x: block(SQUEEZED[i - 2], self.dtype, name=f"fire{i}")(
                ceil_max_pool(x, 3, 2) if i in pooled else x, train)

        return walk(x.astype(self.dtype), self.until, {
            "conv1": conv1, **{f"fire{i}": fire(i) for i in range(2, 10)}, "pooled": global_average})
