"""Classifiers made of templates of unlabelled target features."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def t3a_templates(features: jax.Array, logits: jax.Array, kernel: jax.Array, weights: jax.Array,
                  supports: int) -> jax.Array:
    """The kernel of a classifier without bias from supports of every class (T3A; Iwasawa & Matsuo 2021, section 4).

    A class is supported by the columns of the kernel and by the features that it is predicted for, all of length 1; of
    these the `supports` with the least entropy of their prediction stay (their eq. 7, the filter M). Its template is
    their mean. Ties are kept in the order of the examples.

    Args:
      features: float [n, d] of the target.
      logits: float [n, K] as the model gives them.
      kernel: float [d, K].
      weights: float [n], 0 for an example that does not count.
      supports: M, at least 1.

    Returns:
      float32 [d, K].
    """
    classes = kernel.shape[1]
    own = kernel.T.astype(jnp.float32)
    vectors = jnp.concatenate([own, features.astype(jnp.float32)])
    scores = jnp.concatenate([jnp.matmul(own, own.T, precision="highest"), logits.astype(jnp.float32)])
    given = jnp.concatenate([jnp.arange(classes), jnp.argmax(logits, -1)])
    counts = jnp.concatenate([jnp.ones(classes), (weights > 0).astype(jnp.float32)])
    log_shares = jax.nn.log_softmax(scores)
    entropies = -jnp.sum(jnp.exp(log_shares) * log_shares, -1)
    unit = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

    def template(number: jax.Array) -> jax.Array:
        mine = (given == number) & (counts > 0)
        ranks = jnp.argsort(jnp.argsort(jnp.where(mine, entropies, jnp.inf), stable=True), stable=True)
        kept = (mine & (ranks < supports)).astype(jnp.float32)
        return jnp.sum(kept[:, None] * unit, 0) / jnp.maximum(kept.sum(), 1)

    return jax.lax.map(template, jnp.arange(classes)).T
