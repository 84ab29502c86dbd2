"""Two-dimensional convolution with the parameters of `nn.Conv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from transfer_jax.layers.dense import product
from transfer_jax.layers.depthwise import depthwise
from transfer_jax.layers.lowering import LAYOUT, Geometry, Pair, convolution

MOST_SPLIT_GROUPS = 64  # up to here a grouped convolution runs as one ordinary convolution per group
Padding = str | int | Sequence[int] | Sequence[Pair]


def pair(value: int | Sequence[int]) -> Pair:
    """3 -> (3, 3); (3, 5) -> (3, 5)."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def explicit_padding(padding: Padding, size: Pair, kernel: Pair, strides: Pair) -> tuple[Pair, Pair]:
    """'SAME', 'VALID', n, (n, m) or ((a, b), (c, d)) -> ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        (top, bottom), (left, right) = jax.lax.padtype_to_pads(size, kernel, strides, padding)
        return (int(top), int(bottom)), (int(left), int(right))
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    rows, columns = padding
    return pair(rows), pair(columns)


def convolve(x: jax.Array, kernel: jax.Array, strides: Pair = (1, 1), padding: Padding = "SAME",
             groups: int = 1) -> jax.Array:
    """[B, H, W, C] * [h, w, C / groups, F] -> [B, H', W', F], by the fastest form for this backend and shape."""
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], strides)
    if jax.default_backend() == "cpu":
        if groups == 1 and kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
            return product(x[:, ::strides[0], ::strides[1]], kernel[0, 0])
        if groups == 1 and kernel.shape[:2] == strides and pads == ((0, 0), (0, 0)):
            return _patchwise(x, kernel)
        if 1 < groups == x.shape[-1]:
            return depthwise(x, kernel, strides, pads)
        run = convolution(Geometry(x.shape[1:3], kernel.shape[:2], strides, pads))
        if groups <= MOST_SPLIT_GROUPS:
            parts = zip(jnp.split(x, groups, 3), jnp.split(kernel, groups, 3), strict=True)
            return run(x, kernel) if groups == 1 else jnp.concatenate([run(*part) for part in parts], 3)
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=LAYOUT,
                                        feature_group_count=groups)


def _patchwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A kernel as large as its stride sees each pixel at most once: one matrix product of reordered pixels."""
    (rows, columns), (h, w) = (n // k for n, k in zip(x.shape[1:3], kernel.shape, strict=False)), kernel.shape[:2]
    x = x[:, :rows * h, :columns * w].reshape(x.shape[0], rows, h, columns, w, x.shape[3])
    patches = jnp.swapaxes(x, 2, 3).reshape(x.shape[0], rows, columns, -1)
    return product(patches, kernel.reshape(-1, kernel.shape[3]))


class Conv(nn.Module):
    """Convolution with the parameters of `nn.Conv`: `kernel` [h, w, C / groups, features] and `bias` [features]."""

    features: int
    kernel_size: int | Sequence[int] = 3
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        shape = (*pair(self.kernel_size), x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = convolve(x, kernel, pair(self.strides), self.padding, self.feature_group_count)
        return y if bias is None else y + bias
