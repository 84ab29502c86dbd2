"""A head that draws: from a small map, or a vector, step by step up to the size of the image."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.models.taps import Taps, find_tap


class DecoderHead(nn.Module, kw_only=True):
    """Numbers for every pixel, [B, *image_size, outputs], from a map [B, h, w, C] or a vector [B, D].

    A step for each of `widths`: a bilinear resize by an equal factor, so that the last step reaches the size of the
    image, a 3x3 convolution and ReLU (resize and convolve in place of a transposed convolution, which leaves a
    chequerboard; Odena et al. 2016); then a 1x1 convolution. A vector becomes the map 2^-len(widths) of the image by a
    dense layer.
    """

    outputs: int
    tap: str = "pooled"
    widths: tuple[int, ...] = (64, 32, 16)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: tuple[int, int] | None = None,
                 train: bool = False) -> jax.Array:
        x = find_tap(taps, self.tap)
        if image_size is None or x.ndim not in (2, 4) or not self.widths:
            raise UserError(f"the head decoder draws images from a map or a vector, in one step or more, but the tap "
                            f"{self.tap!r} has the shape {x.shape}, the images {image_size}, and widths are "
                            f"{self.widths}")
        if x.ndim == 2:
            height, width = (math.ceil(side / 2 ** len(self.widths)) for side in image_size)
            x = nn.Dense(height * width * self.widths[0], dtype=self.dtype, name="map")(x)
            x = nn.relu(x).reshape(-1, height, width, self.widths[0])
        first = x.shape[1:3]
        for number, width in enumerate(self.widths, 1):
            share = number / len(self.widths)
            size = [round(a * (b / a) ** share) for a, b in zip(first, image_size, strict=True)]
            x = jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)
            x = nn.relu(Conv(width, 3, dtype=self.dtype, name=f"conv{number}")(x))
        return Conv(self.outputs, 1, dtype=self.dtype, name="draw")(x).astype(jnp.float32)
