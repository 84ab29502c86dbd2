"""Dense layers whose gradients XLA:CPU computes without copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax import lax


def product(x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    """[..., C] x [C, F] -> [..., F], as one product of two matrices; `options` are those of `lax.dot_general`.

    With more axes than two, XLA:CPU stores the gradient of the result a second time, transposed, for the gradient to
    the kernel: a fifth of the processor time of a training step of BERT (6 layers of 384).
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options).reshape(*x.shape[:-1], kernel.shape[1])


def _dense_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """`lax.dot_general` of a dense layer, on a CPU by `product`."""
    if jax.default_backend() == "cpu":
        return product(x, kernel, **options)
    return lax.dot_general(x, kernel, dimensions, **options)


class Dense(nn.Dense):
    """`nn.Dense` in everything but speed: parameters `kernel` [C, features] and `bias` [features]."""

    dot_general: Callable = _dense_product
