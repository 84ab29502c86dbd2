"""Values that are stored instead of computed again by each of their readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def materialized(x: jax.Array) -> jax.Array:
    """Returns the float array `x`; on a CPU neither it nor its gradient is computed more than once.

    For the streams of residual networks. XLA:CPU fuses a cheap sum into every reader that it can, and the gradient of
    a residual stream is the sum of what all later blocks send back: each block added that up anew, which is quadratic
    in the depth and took more than half of a training step of ViT-Ti and most of its compilation.
    """
    return _stored(x) if jax.default_backend() == "cpu" else x


materialized.defvjp(lambda x: (materialized(x), None), lambda _, cotangent: (materialized(cotangent),))


def _stored(x: jax.Array) -> jax.Array:
    return apart(lambda x: x, x)


def apart(function: Callable, *operands: Any) -> Any:
    """`function(*operands)`, arrays, behind a branch, which the fusions of XLA:CPU do not cross: the operands are
    stored before and the result after.

    The barrier hides from the compiler that the branch goes one way only. A barrier around the result alone would not
    do: it is gone before the compiler fuses.
    """
    def never(*operands: Any) -> Any:
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, *operands))

    return jax.lax.cond(jax.lax.optimization_barrier(True), function, never, *operands)


def shared(x: jax.Array) -> jax.Array:
    """The float array `x`, stored once if one of its readers cannot be fused with it (a convolution, a product).

    XLA:CPU fuses what it takes for a function of one array, such as the activation in front of a convolution, once
    more into each other reader: into the transpositions of a kernel gradient, which then compute a whole block anew in
    an order that leaves the cache at every step. A choice between two arrays it stores; this one always chooses `x`.
    """
    return jnp.where(x == x, x, jnp.nan)
