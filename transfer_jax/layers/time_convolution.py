"""Convolution along one axis, for kernels of many taps, with the parameters of a one-dimensional `nn.Conv`.

The forms of `layers.lowering` write out every tap, which fits small kernels. Here the convolution and its gradients to
the signal and to the kernel are each one `lax` convolution in the only order of dimensions that XLA:CPU runs fast
inside of loops, where its own gradients are up to 50 times slower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax

from transfer_jax.layers.lowering import differentiable, each_member

LAYOUT = ("NWC", "WIO", "NWC")


class TimeConv(nn.Module):
    """[B, T, C] -> [B, ceil(T / strides), features], padded as TensorFlow's SAME."""

    features: int
    kernel_size: int
    strides: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return convolve_time(x, kernel, self.strides) + bias


def convolve_time(x: jax.Array, kernel: jax.Array, strides: int = 1) -> jax.Array:
    """[B, T, C] * [t, C, F] -> [B, ceil(T / strides), F]; any dtype, reverse-mode derivatives of any order."""
    return _bilinear(x.shape[1], kernel.shape[0], strides)[0](x, kernel)


@functools.cache
def _bilinear(length: int, taps: int, strides: int) -> tuple[Callable, Callable, Callable]:
    """The convolution, its gradient to the signal f(g, kernel), its gradient to the kernel f(x, g)."""
    (low, high), = lax.padtype_to_pads((length,), (taps,), (strides,), "SAME")
    last = (-(-length // strides) - 1) * strides  # where the last window begins, in the padded signal

    def run_forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (strides,), [(low, high)], dimension_numbers=LAYOUT)

    def run_to_signal(g: jax.Array, kernel: jax.Array) -> jax.Array:
        edges = (taps - 1 - low, length + low - last - 1)
        return lax.conv_general_dilated(g, jnp.swapaxes(kernel[::-1], 1, 2), (1,), [edges], lhs_dilation=(strides,),
                                        dimension_numbers=LAYOUT)

    def run_to_kernel(x: jax.Array, g: jax.Array) -> jax.Array:
        found = lax.conv_general_dilated(
            jnp.transpose(x, (2, 1, 0)), jnp.transpose(g, (1, 0, 2)), (1,), [(low, taps + last - length - low)],
            rhs_dilation=(strides,), dimension_numbers=LAYOUT,
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
        return jnp.swapaxes(found, 0, 1).astype(x.dtype)

    forward = differentiable(each_member(run_forward, True), lambda c, x, k: (to_signal(c, k), to_kernel(x, c)))
    to_signal = differentiable(each_member(run_to_signal, True), lambda c, g, k: (forward(c, k), to_kernel(c, g)))
    to_kernel = differentiable(each_member(run_to_kernel, False), lambda c, x, g: (to_signal(g, c), forward(x, c)))
    return forward, to_signal, to_kernel
