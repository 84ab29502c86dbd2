"""How much predictions confuse the classes (MCC)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError


def class_confusion(logits: jax.Array, weights: jax.Array, *, temperature: float = 2.5) -> jax.Array:
    """The mean over the classes k of the share of others in row k of the confusion C = Y' diag(w) Y, its rows divided
    by their sums (minimum class confusion, MCC; Jin et al. 2020, section 3).

    Y = softmax(z / T), and w = 1 + exp(-H(Y_i)) weighs sure examples more, a constant for the gradient. Row k of C
    sums to sum_i w_i Y_ik, because a prediction sums to 1: divided by it the row is a mean of predictions with weights
    softmax_i(log w_i Y_ik), which exist also for a class that nobody is given any more.

    Args:
      logits: float [B, K].
      weights: float [B], of the examples; they multiply w.
      temperature: T > 0.

    Returns:
      Between 0 and 1 - 1 / K; 0 for a batch without weight.
    """
    if logits.ndim != 2:
        raise UserError(f"class_confusion needs one prediction per example, [batch, classes], got "
                        f"{list(logits.shape)}")
    if temperature <= 0:
        raise UserError(f"class_confusion: temperature = {temperature} does not fit; give a number > 0")
    logs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    sure = jax.lax.stop_gradient(1 + jnp.exp(jnp.sum(jnp.exp(logs) * logs, axis=-1)))
    counted = weights > 0
    log_weights = jnp.log(jnp.where(counted, weights.astype(jnp.float32), 1.0) * sure)
    shares = jax.nn.softmax(jnp.where(counted[:, None], log_weights[:, None] + logs, -1e30), axis=0)
    confusion = 1 - jnp.sum(shares * jnp.exp(logs)) / logits.shape[-1]
    return jnp.where(jnp.any(counted), confusion, 0.0)
