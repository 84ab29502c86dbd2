"""LeNet-type and small all-convolutional networks for small images."""

from __future__ import annotations

import jax
from flax import linen as nn

from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import normalized
from transfer_jax.layers.pooling import global_average, max_pool
from transfer_jax.models.taps import Backbone, Taps, walk


class LeNet(Backbone):
    """Two 5x5 convolutions with 2x2 max-pooling, two dense layers, ReLU (after LeCun et al. 1998).

    Taps: `conv1`, `conv2` (maps after pooling, 1/2 and 1/4 of the image), `flat`, `fc1`, `pooled` (last vector).
    `norm`: None, 'batch' or 'group' (8 groups or fewer), between each convolution or dense layer and what follows.
    """

    widths: tuple[int, int] = (20, 50)
    dense: tuple[int, int] = (120, 84)
    norm: str | None = None

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("conv1", "conv2", "flat", "fc1", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C], H and W at least 4 -> taps."""
        def normed(x: jax.Array, name: str) -> jax.Array:
            return nn.relu(normalized(x, self.norm, f"{name}_norm", train, self.dtype, "lenet"))

        def block(name: str, features: int):
            return lambda x: max_pool(normed(Conv(features, 5, dtype=self.dtype, name=name)(x), name), 2)

        def dense(name: str, features: int):
            return lambda x: normed(nn.Dense(features, dtype=self.dtype, name=name)(x), name)

        return walk(x.astype(self.dtype), self.until, {
            "conv1": block("conv1", self.widths[0]),
            "conv2": block("conv2", self.widths[1]),
            "flat": lambda x: x.reshape(x.shape[0], -1),
            "fc1": dense("fc1", self.dense[0]),
            "pooled": dense("fc2", self.dense[1]),
        })


class SmallCNN(Backbone):
    """All-convolutional: stages of 3x3 convolutions, the first at full size, each later one at half the size before.

    Taps: `stage1`, `stage2`, ... (maps at 1, 1/2, 1/4 ... of the image) and `pooled`, the mean of the last map.
    `norm`: None, 'batch' or 'group' (8 groups or fewer), between each convolution and its ReLU.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    convolutions: int = 1
    norm: str | None = None

    @property
    def tap_names(self) -> tuple[str, ...]:
        return (*(f"stage{i + 1}" for i in range(len(self.widths))), "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        def stage(index: int):
            return lambda x: self._stage(x, index, train)

        steps = {f"stage{i + 1}": stage(i) for i in range(len(self.widths))}
        return walk(x.astype(self.dtype), self.until, {**steps, "pooled": global_average})

    def _stage(self, x: jax.Array, index: int, train: bool) -> jax.Array:
        features = self.widths[index]
        for number in range(1, self.convolutions + 1):
            name = f"stage{index + 1}_conv{number}"
            strides = 2 if index > 0 and number == 1 else 1
            x = Conv(features, 3, strides, use_bias=self.norm is None, dtype=self.dtype, name=name)(x)
            x = nn.relu(normalized(x, self.norm, name.replace("conv", "norm"), train, self.dtype, "small_cnn"))
        return x
