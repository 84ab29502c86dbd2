"""Terms that pull the feature distributions of two domains together by their moments.

Feature maps [B, H, W, C] count as B H W vectors of length C. Everything is computed in float32 at the highest matrix
precision: differences of covariances drown in the 10 mantissa bits that accelerators use by default.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.lengths import length


def deep_coral(source_features: jax.Array, target_features: jax.Array, *, mean_weight: float = 0.0,
               convention: Literal["paper", "tllib"] = "paper") -> jax.Array:
    """|C_s - C_t|_F^2 / (4 d^2) with covariances over N - 1 (Sun & Saenko 2016, eq. 1-3).

    Args:
      source_features, target_features: float [Bs, d], [Bt, d] or maps [B, H, W, d].
      mean_weight: adds mean_weight |m_s - m_t|^2 / d with the feature means m; 0 in the paper.
      convention: 'tllib', also that of DomainBed and WILDS, is |m_s - m_t|^2 / d + |C_s - C_t|_F^2 / d^2: four times
        the paper's, and with means. Compare weights within one convention.

    Raises:
      UserError: for fewer than two feature vectors in a domain, or different lengths.
    """
    if convention not in ("paper", "tllib"):
        raise UserError(f"deep_coral: convention = {convention!r} does not fit; use 'paper' or 'tllib'")
    source, target = vectors("deep_coral", source_features, target_features)
    covariances = jnp.mean(jnp.square(_covariance(source) - _covariance(target)))
    means = jnp.mean(jnp.square(source.mean(0) - target.mean(0)))
    return means + covariances if convention == "tllib" else covariances / 4 + mean_weight * means


def central_moments(source_features: jax.Array, target_features: jax.Array, *, orders: int = 5,
                    span: float = 1.0) -> jax.Array:
    """|E s - E t| / span + sum_k=2..orders |c_k(s) - c_k(t)| / span^k, c_k the k-th central moment of every entry
    (central moment discrepancy, CMD; Zellinger et al. 2017).

    Args:
      source_features, target_features: float [Bs, d], [Bt, d] or maps [B, H, W, d]. The definition wants entries in
        an interval [a, b] (behind a sigmoid or tanh): powers of unbounded ones soon outweigh all else.
      orders: the highest moment, 5 in the paper.
      span: b - a: 1 behind a sigmoid, 2 behind tanh.

    Raises:
      UserError: for `orders` below 1 or a `span` that is not positive; for features as in `deep_coral`.
    """
    if orders < 1 or span <= 0:
        raise UserError(f"central_moments: orders = {orders}, span = {span} do not fit; give orders >= 1, span > 0")
    source, target = vectors("central_moments", source_features, target_features)
    means = jnp.mean(source, axis=0), jnp.mean(target, axis=0)
    loss = length(means[0] - means[1]) / span
    for order in range(2, orders + 1):
        moments = [jnp.mean((x - mean)**order, axis=0) for x, mean in zip((source, target), means, strict=True)]
        loss += length(moments[0] - moments[1]) / span**order
    return loss


def vectors(name: str, source: jax.Array, target: jax.Array, least: int = 2) -> tuple[jax.Array, jax.Array]:
    """float32 [N, d], [M, d]: the features of both domains, every position of a map a vector.

    Raises:
      UserError: naming the term, for different lengths or fewer than `least` vectors in a domain.
    """
    if source.shape[-1] != target.shape[-1]:
        raise UserError(f"{name}: source features {source.shape} and target features {target.shape} differ in length; "
                        f"take both from the same tap")
    source, target = (x.astype(jnp.float32).reshape(-1, x.shape[-1]) for x in (source, target))
    if min(len(source), len(target)) < least:
        raise UserError(f"{name} needs at least {least} examples of each domain in a batch, got {len(source)} and "
                        f"{len(target)}; raise the batch size")
    return source, target


def _covariance(x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=0)
    return jnp.matmul(centred.T, centred, precision="highest") / (len(x) - 1)
