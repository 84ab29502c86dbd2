"""Values that are stored instead of computed again by each of their readers."""

from __future__ import annotations

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
    """`x` behind a branch, which fusions do not cross; the barrier hides from the compiler that it goes one way only.

    A barrier around `x` alone would not do: it is gone before the compiler fuses.
    """
    return jax.lax.cond(jax.lax.optimization_barrier(True), lambda x: x, jnp.negative, x)
