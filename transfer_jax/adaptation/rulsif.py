"""Least-squares importance fitting, plain (uLSIF) and relative (RuLSIF)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.adaptation.domains import two_domains
from transfer_jax.adaptation.kernels import FACTORS, gaussian, median_distance, squared_distances
from transfer_jax.adaptation.precision import in_double
from transfer_jax.adaptation.weighting import Array, Weighted, equal_weights, finished, positive, shuffled
from transfer_jax.core.errors import UserError

PENALTIES = tuple(10.0 ** np.arange(1, -4.5, -0.5))


def ulsif(source: Array, target: Array, key: jax.Array | None = None, *, bandwidth: float | None = None,
          penalty: float | None = None, centers: int = 100) -> Weighted:
    """Unconstrained least-squares importance fitting (Kanamori et al. 2009): `rulsif` with alpha 0, whose ratio is
    that of the densities themselves."""
    return rulsif(source, target, key, alpha=0.0, bandwidth=bandwidth, penalty=penalty, centers=centers)


@in_double
def rulsif(source: Array, target: Array, key: jax.Array | None = None, *, alpha: float = 0.1,
           bandwidth: float | None = None, penalty: float | None = None, centers: int = 100) -> Weighted:
    """Relative least-squares importance fitting (Yamada et al. 2013): w(x) = sum_l theta_l k(x, c_l) with
    theta = (H + penalty I)^-1 h comes closest in squares to p_t / (alpha p_t + (1 - alpha) p_s), which is at most
    1 / alpha; H is the mean of kk' over the mixture in the denominator, h that of k over the target. Negative
    coefficients are set to zero (Kanamori et al. 2009).

    Args:
        source, target: [n_s, d] and [n_t, d].
        key: draws the centers (from the target) and the pairs that are left out; None: the first ones.
        alpha: in [0, 1).
        bandwidth, penalty: None: by the leave-one-out score in closed form (`leave_one_out`), among `FACTORS` medians
            of the distances and `PENALTIES`. With a single example in a domain: the median and 0.1. Where all examples
            are equal, all weights are one.

    Returns:
        Weights float64 [n_s] with mean one, and metrics: bandwidth, penalty, score (lower is better).
    """
    positive("the bandwidth of least-squares importance fitting", bandwidth)
    positive("the penalty of least-squares importance fitting", penalty)
    if not 0 <= alpha < 1:
        raise UserError(f"alpha of RuLSIF is {alpha}; give a number from 0 on and below 1")
    source, target = two_domains(source, target)
    scale = median_distance(source, target)
    if scale == 0:
        return equal_weights(len(source))
    source_order, order = (shuffled(rows, key) for rows in (len(source), len(target)))
    middle = target[order[:centers]]
    near = squared_distances(jnp.asarray(source[source_order]), middle), squared_distances(jnp.asarray(target[order]),
                                                                                          middle)
    bandwidth, penalty, score = _chosen(near, alpha, scale, bandwidth, penalty)
    kernels = [gaussian(distances, bandwidth) for distances in near]
    ratios = np.empty(len(source))
    ratios[source_order] = np.asarray(kernels[0] @ coefficients(*kernels, alpha, penalty))
    return finished(ratios, bandwidth=bandwidth, penalty=penalty, score=score)


@jax.jit
def coefficients(at_source: jax.Array, at_target: jax.Array, alpha: float, penalty: float) -> jax.Array:
    """theta [L], not negative, of kernels [n_s, L] and [n_t, L]."""
    h = at_target.mean(0)
    matrix = alpha * at_target.T @ at_target / len(at_target) + (1 - alpha) * at_source.T @ at_source / len(at_source)
    return jnp.maximum(jnp.linalg.solve(matrix + penalty * jnp.eye(len(h)), h), 0)


@jax.jit
def leave_one_out(at_source: jax.Array, at_target: jax.Array, alpha: float, penalty: float) -> jax.Array:
    """The score mean_i [alpha/2 w_i(t_i)^2 + (1 - alpha)/2 w_i(s_i)^2 - w_i(t_i)] over the first min(n_s, n_t) pairs,
    w_i being fitted without source example i and target example i.

    Leaving both out takes two outer products from the matrix, so each fit is that of all with a correction of rank two
    (Woodbury): nothing is solved anew. For alpha 0 it is the score of Kanamori et al. (2009, section 3.2).
    """
    n_s, n_t = len(at_source), len(at_target)
    pairs = min(n_s, n_t)
    s, t = at_source[:pairs].T, at_target[:pairs].T  # [L, n]
    matrix = (alpha / (n_t - 1) * at_target.T @ at_target + (1 - alpha) / (n_s - 1) * at_source.T @ at_source
              + penalty * jnp.eye(len(s)))
    u, v = jnp.sqrt(alpha / (n_t - 1)) * t, jnp.sqrt((1 - alpha) / (n_s - 1)) * s
    h = (at_target.sum(0)[:, None] - t) / (n_t - 1)
    solve = functools.partial(jax.scipy.linalg.cho_solve, jax.scipy.linalg.cho_factor(matrix))
    pu, pv, q = solve(u), solve(v), solve(h)
    a, b, c = 1 - (u * pu).sum(0), -(u * pv).sum(0), 1 - (v * pv).sum(0)
    right_u, right_v = (u * q).sum(0), (v * q).sum(0)
    determinant = a * c - b ** 2
    theta = q + pu * (c * right_u - b * right_v) / determinant + pv * (a * right_v - b * right_u) / determinant
    theta = jnp.maximum(theta, 0)
    w_s, w_t = (s * theta).sum(0), (t * theta).sum(0)
    return (alpha * w_t ** 2 / 2 + (1 - alpha) * w_s ** 2 / 2 - w_t).mean()


def _chosen(near: tuple[jax.Array, jax.Array], alpha: float, scale: float, bandwidth: float | None,
            penalty: float | None) -> tuple[float, float, float]:
    """Bandwidth, penalty and their score."""
    if min(len(part) for part in near) < 2:
        return bandwidth or scale, penalty or 0.1, float("nan")
    bandwidths = np.array([bandwidth] if bandwidth else scale * np.array(FACTORS))
    penalties = np.array([penalty] if penalty else PENALTIES)
    scores = np.asarray(_scores(*near, jnp.asarray(bandwidths), jnp.asarray(penalties), alpha))
    place = np.unravel_index(np.argmin(np.nan_to_num(scores, nan=np.inf)), scores.shape)
    return float(bandwidths[place[0]]), float(penalties[place[1]]), float(scores[place])


@jax.jit
def _scores(to_source: jax.Array, to_target: jax.Array, bandwidths: jax.Array, penalties: jax.Array,
            alpha: float) -> jax.Array:
    """[B, P]."""
    def of(bandwidth: jax.Array) -> jax.Array:
        kernels = gaussian(to_source, bandwidth), gaussian(to_target, bandwidth)
        return jax.lax.map(lambda penalty: leave_one_out(*kernels, alpha, penalty), penalties)

    return jax.lax.map(of, bandwidths)
