"""Identity functions that change only the gradient on its way back."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def scale_gradient(x: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Returns `x` unchanged; the gradient that comes back to `x` is multiplied by `scale`.

    Args:
        x: float array of any shape.
        scale: scalar, possibly traced (a schedule); it receives a zero gradient.
    """
    del scale
    return x


def _forward(x, scale):
    return x, jnp.asarray(scale, jnp.float32)


def _backward(scale, cotangent):
    return (cotangent * scale).astype(cotangent.dtype), jnp.zeros_like(scale)


scale_gradient.defvjp(_forward, _backward)


def reverse_gradient(x: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
    """Gradient reversal (Ganin & Lempitsky 2015, eq. 8-9): identity forward, gradient times `-scale` backward.

    Args:
        x: float array of any shape.
        scale: scalar, possibly traced; the strength lambda of the reversal.
    """
    return scale_gradient(x, -jnp.asarray(scale, jnp.float32))
