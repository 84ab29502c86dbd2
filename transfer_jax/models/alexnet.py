"""AlexNet (Krizhevsky et al. 2012) in its one-column form (Krizhevsky 2014, "One weird trick")."""

from __future__ import annotations

import jax
from flax import linen as nn

from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.pooling import adaptive_avg_pool, max_pool
from transfer_jax.models.image_size import require_size
from transfer_jax.models.taps import Backbone, Taps, walk

HIDDEN = 4096
LEAST = {"conv1": 7, "conv2": 15, "conv3": 31, "pool5": 63}
gaussian = nn.initializers.normal(0.01)


class AlexNet(Backbone):
    """Five convolutions and two hidden dense layers, each with ReLU.

    Taps: `conv1` (1/4 of the image), `conv2` (1/8), `conv3`, `conv4`, `conv5` (1/16), `pool5` [B, 6, 6, 256] whatever
    the image (an adaptive mean behind the max-pooling), `fc6` and `fc7` [B, 4096], `pooled` (which is `fc7`). There
    are no blocks: `remat` changes nothing.
    dropout: rate at the inputs of fc6 and fc7, needs the rng 'dropout' in training. pool_size: side of `pool5`.
    """

    dropout: float = 0.5
    pool_size: int = 6

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        require_size(x, LEAST, self.tap_names, self.until, "AlexNet")

        def conv(x: jax.Array, features: int, size: int, name: str, strides: int = 1, padding: int | None = None,
                 bias: float = 0.0) -> jax.Array:
            padding = size // 2 if padding is None else padding
            return nn.relu(Conv(features, size, strides, padding, dtype=self.dtype, kernel_init=gaussian,
                                bias_init=nn.initializers.constant(bias), name=name)(x))

        def dense(name: str):
            # Biases of one keep the first ReLUs alive (Krizhevsky et al. 2012, section 5).
            return lambda x: nn.relu(nn.Dense(HIDDEN, dtype=self.dtype, kernel_init=gaussian,
                                              bias_init=nn.initializers.ones, name=name)(self._thinned(x, train)))

        return walk(x.astype(self.dtype), self.until, {
            "conv1": lambda x: conv(x, 64, 11, "conv1", 4, 2),
            "conv2": lambda x: conv(max_pool(x, 3, 2), 192, 5, "conv2", bias=1.0),
            "conv3": lambda x: conv(max_pool(x, 3, 2), 384, 3, "conv3"),
            "conv4": lambda x: conv(x, 256, 3, "conv4", bias=1.0),
            "conv5": lambda x: conv(x, 256, 3, "conv5", bias=1.0),
            "pool5": lambda x: adaptive_avg_pool(max_pool(x, 3, 2), self.pool_size),
            "fc6": dense("fc6"), "fc7": dense("fc7"), "pooled": lambda x: x})

    def _thinned(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
