"""Terms on the singular values of a batch of features or predictions.

A singular vector held constant leaves its singular value with the exact gradient (Hellmann & Feynman), also at equal
ones, where the derivative of a decomposition does not exist.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError


def batch_spectral_shrinkage(features: jax.Array, *, strength: float = 1e-3, count: int = 1) -> jax.Array:
    """strength times the sum of the `count` smallest squared singular values of the batch's features (Chen et al.
    2019, BSS, eq. 3): directions that the batch hardly uses are given up, against negative transfer.

    Args:
      features: float [B, d]. A batch of more than d examples, or of repeated ones, has smallest values of 0.
      count: k in the paper.

    Raises:
      UserError: for features that are no vectors, or a `count` beyond their number.
    """
    if features.ndim != 2 or not 1 <= count <= min(features.shape):
        raise UserError(f"batch_spectral_shrinkage: count = {count} of features {list(features.shape)}; it needs "
                        f"vectors [B, d] (a pooled tap) and a count between 1 and the smaller of B and d")
    return strength * squared_singular_values(features, slice(None, count))


def batch_spectral_penalization(source_features: jax.Array, target_features: jax.Array, *, strength: float = 1e-4,
                                count: int = 1) -> jax.Array:
    """strength times the sum over both domains of the `count` largest squared singular values of the batch's features
    (Chen, Wang, Long & Wang 2019, BSP): no direction may outweigh those that tell the classes apart.

    Stands beside an adversarial term, which by itself transfers along the largest directions alone. The sum grows with
    the batch size, as in the paper.

    Args:
      source_features, target_features: float [Bs, d], [Bt, d].
      strength: beta in the paper.
      count: k in the paper.

    Raises:
      UserError: for features that are no vectors, or a `count` beyond their number.
    """
    for features in (source_features, target_features):
        if features.ndim != 2 or not 1 <= count <= min(features.shape):
            raise UserError(f"batch_spectral_penalization: count = {count} of features {list(features.shape)}; it "
                            f"needs vectors [B, d] (a pooled tap) and a count between 1 and the smaller of B and d")
    return strength * sum(squared_singular_values(x, slice(-count, None)) for x in (source_features, target_features))


def nuclear_norm(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """-|P|_* / B, the sum of the singular values of the predicted probabilities (BNM; Cui et al. 2020).

    Its minimum has predictions that are sure and spread over as many classes as the batch can hold. A row counts
    sqrt(weight), so that weight 2 is the example twice; B is the sum of the weights. Singular values below 1e-6 of the
    largest have no gradient: there the norm has a cone's tip, at which any direction would do.

    Args:
      logits: float [B, K].
      weights: float [B].
    """
    if logits.ndim != 2:
        raise UserError(f"nuclear_norm needs one prediction per example, [batch, classes], got {list(logits.shape)}")
    weights = weights.astype(jnp.float32)
    rows = jnp.sqrt(weights)[:, None] * jax.nn.softmax(logits.astype(jnp.float32))
    left, values, right = jnp.linalg.svd(jax.lax.stop_gradient(rows), full_matrices=False)
    slope = jnp.matmul(left * (values > 1e-6 * values[0]), right, precision="highest")
    return -jnp.sum(slope * rows) / jnp.maximum(jnp.sum(weights), 1e-6)


def squared_singular_values(features: jax.Array, chosen: slice) -> jax.Array:
    """The sum of the chosen ones of the squared singular values of [B, d], in ascending order: eigenvalues of the
    smaller of F F' and F' F."""
    f = features.astype(jnp.float32)
    gram = jnp.matmul(f, f.T, precision="highest") if len(f) < f.shape[1] else jnp.matmul(f.T, f, precision="highest")
    vectors = jax.lax.stop_gradient(jnp.linalg.eigh(gram)[1][:, chosen])
    return jnp.sum(vectors * jnp.matmul(gram, vectors, precision="highest"))
