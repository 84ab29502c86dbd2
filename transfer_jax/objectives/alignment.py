"""Terms that pull the feature distributions of two domains together by their moments.

Feature maps [B, H, W, C] count as B H W vectors of length C. Everything is computed in float32 at the highest matrix
precision: differences of covariances drown in the 10 mantissa bits that accelerators use by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError


def deep_coral(source_features: jax.Array, target_features: jax.Array, *, mean_weight: float = 0.0) -> jax.Array:
    """|C_s - C_t|_F^2 / (4 d^2) with covariances over N - 1 (Sun & Saenko 2016, eq. 1-3).

    Args:
      source_features, target_features: float [Bs, d], [Bt, d] or maps [B, H, W, d].
      mean_weight: adds mean_weight |m_s - m_t|^2 / d with the feature means m; 0 in the paper.

    Raises:
      UserError: for fewer than two feature vectors in a domain, or different lengths.
    """
    source, target = _vectors("deep_coral", source_features, target_features)
    size = source.shape[-1]
    loss = jnp.sum(jnp.square(_covariance(source) - _covariance(target))) / (4 * size**2)
    return loss + mean_weight * jnp.mean(jnp.square(source.mean(0) - target.mean(0)))


def mmd(source_features: jax.Array, target_features: jax.Array, *,
        bandwidth: float | Literal["mean", "median"] = "mean",
        multipliers: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        estimator: Literal["biased", "unbiased"] = "biased") -> jax.Array:
    """Squared maximum mean discrepancy, E k(s, s') + E k(t, t') - 2 E k(s, t) (Gretton et al. 2012, eq. 3 and 5).

    The kernel is the mean over the multipliers m of exp(-|x - y|^2 / (m b)), bounded by 1.

    Args:
      source_features, target_features: float [Bs, d], [Bt, d] or maps [B, H, W, d].
      bandwidth: b; or 'mean' or 'median' of the squared distances over all distinct pairs of both domains together,
        a constant for the gradient.
      multipliers: m, widths of the kernels relative to b.
      estimator: 'biased' keeps the pairs of a vector with itself and is never negative; 'unbiased' leaves them out.
    """
    source, target = _vectors("mmd", source_features, target_features)
    squared = _squared_distances(jnp.concatenate([source, target]))
    width = _bandwidth(squared, bandwidth)
    width = jnp.where(width > 0, width, 1.0)  # all vectors equal, as behind a dead layer
    kernel = jnp.mean(jnp.stack([jnp.exp(-squared / (multiplier * width)) for multiplier in multipliers]), axis=0)
    count = len(source)
    within = [_mean_kernel(block, estimator) for block in (kernel[:count, :count], kernel[count:, count:])]
    return within[0] + within[1] - 2 * jnp.mean(kernel[:count, count:])


def _vectors(name: str, source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    if source.shape[-1] != target.shape[-1]:
        raise UserError(f"{name}: source features {source.shape} and target features {target.shape} differ in length; "
                        f"take both from the same tap")
    source, target = (x.astype(jnp.float32).reshape(-1, x.shape[-1]) for x in (source, target))
    if min(len(source), len(target)) < 2:
        raise UserError(f"{name} needs at least 2 examples of each domain in a batch, got {len(source)} and "
                        f"{len(target)}; raise the batch size")
    return source, target


def _covariance(x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=0)
    return jnp.matmul(centred.T, centred, precision="highest") / (len(x) - 1)


def _squared_distances(x: jax.Array) -> jax.Array:
    # Distances do not depend on the origin; around the mean the squared lengths cancel least.
    x = x - jnp.mean(x, axis=0)
    lengths = jnp.sum(jnp.square(x), axis=-1)
    squared = lengths[:, None] + lengths[None, :] - 2 * jnp.matmul(x, x.T, precision="highest")
    return jnp.where(jnp.eye(len(x), dtype=bool), 0.0, jnp.maximum(squared, 0.0))


def _bandwidth(squared: jax.Array, bandwidth: float | str) -> jax.Array:
    if bandwidth not in ("mean", "median"):
        if isinstance(bandwidth, str) or bandwidth <= 0:
            raise UserError(f"mmd: bandwidth = {bandwidth!r} does not fit; use 'mean', 'median' or a number > 0")
        return jnp.asarray(bandwidth, jnp.float32)
    pairs = squared[jnp.triu_indices(len(squared), 1)]
    return jax.lax.stop_gradient(jnp.mean(pairs) if bandwidth == "mean" else jnp.median(pairs))


def _mean_kernel(kernel: jax.Array, estimator: str) -> jax.Array:
    count = len(kernel)
    if estimator == "biased":
        return jnp.mean(kernel)
    if estimator == "unbiased":
        return jnp.sum(jnp.where(jnp.eye(count, dtype=bool), 0.0, kernel)) / (count * (count - 1))
    raise UserError(f"mmd: estimator = {estimator!r} does not fit; use 'biased' or 'unbiased'")
