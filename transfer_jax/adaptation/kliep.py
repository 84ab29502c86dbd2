"""KLIEP: the ratio of densities whose product with the source density is closest to the target's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.adaptation.domains import two_domains
from transfer_jax.adaptation.kernels import FACTORS, gaussian, median_distance, squared_distances
from transfer_jax.adaptation.precision import in_double
from transfer_jax.adaptation.weighting import Array, Weighted, equal_weights, finished, positive, shuffled

TINY = 1e-200  # a density that no kernel reaches


@in_double
def kliep(source: Array, target: Array, key: jax.Array | None = None, *, bandwidth: float | None = None,
          centers: int = 100, folds: int = 5, tolerance: float = 1e-5, steps: int = 20000) -> Weighted:
    """Kullback-Leibler importance estimation (Sugiyama et al. 2008): w(x) = sum_l a_l k(x, c_l) maximises the mean of
    log w over the target, subject to a >= 0 and mean one over the source.

    With p_l = a_l * mean_s k(x, c_l) these are the proportions of a mixture, whose EM update never lowers the objective
    and needs no step size. It stops when log(max_l gain_l), which bounds what is still to be gained, is small.

    Args:
        source, target: [n_s, d] and [n_t, d].
        key: draws the centers (from the target) and the folds; None: the first ones.
        bandwidth: of the Gaussian kernel; None: the one of `FACTORS` medians with the best cross-validated likelihood.
            Where all examples are equal, all weights are one.
        tolerance: on the objective, nats.

    Returns:
        Weights float64 [n_s] with mean one, and metrics: bandwidth, objective, gap (a bound on its distance to the
        optimum).
    """
    positive("the bandwidth of KLIEP", bandwidth)
    source, target = two_domains(source, target)
    scale = median_distance(source, target)
    if scale == 0:
        return equal_weights(len(source))
    order = shuffled(len(target), key)
    middle = target[order[:centers]]
    near = squared_distances(jnp.asarray(target[order]), middle), squared_distances(jnp.asarray(source), middle)
    if bandwidth is None:
        bandwidth = _cross_validated(near, scale * np.array(FACTORS), folds) if len(target) > 1 else scale
    proportions, at_target, at_source, gap = fit_proportions(*near, jnp.asarray(bandwidth), tolerance, steps)
    weights = np.asarray(at_source @ proportions)
    objective = float(jnp.log(at_target @ proportions + TINY).mean())
    return finished(weights, bandwidth=bandwidth, objective=objective, gap=gap)


@functools.partial(jax.jit, static_argnames="steps")
def fit_proportions(to_target: jax.Array, to_source: jax.Array, bandwidth: jax.Array, tolerance: float,
                    steps: int) -> tuple[jax.Array, ...]:
    """Proportions [L] for squared distances [n_t, L] and [n_s, L] to the centers, kernels of mean one over the source
    [n_t, L] and [n_s, L], and a bound on how far the objective is from its largest value."""
    at_target, at_source = _mixture(to_target, to_source, bandwidth)
    proportions, gap = _proportions(at_target, jnp.full(len(at_target), 1 / len(at_target)), tolerance, steps)
    return proportions, at_target, at_source, gap


def _mixture(to_target: jax.Array, to_source: jax.Array, bandwidth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kernels [n_t, L] and [n_s, L] with mean one over the source; zeros for centers that no source example is near:
    their kernel could grow without bound."""
    at_target, at_source = gaussian(to_target, bandwidth), gaussian(to_source, bandwidth)
    means = at_source.mean(0)
    usable = means > 1e-12
    scale = jnp.where(usable, 1 / jnp.where(usable, means, 1), 0)
    return at_target * scale, at_source * scale


def _proportions(densities: jax.Array, shares: jax.Array, tolerance: float, steps: int) -> tuple[jax.Array, jax.Array]:
    """EM for the proportions [L] of known densities [n, L], examples weighted by `shares`, and the bound on the gap."""
    def gains(p: jax.Array) -> jax.Array:
        return densities.T @ (shares / (densities @ p + TINY))

    def step(carried: tuple) -> tuple:
        p, gain, count = carried
        p = p * gain
        p = p / p.sum()
        return p, gains(p), count + 1

    def going(carried: tuple) -> jax.Array:
        _, gain, count = carried
        return (count < steps) & (jnp.log(gain.max()) > tolerance)

    usable = (densities > 0).any(0)
    start = usable / jnp.maximum(usable.sum(), 1)
    p, gain, _ = jax.lax.while_loop(going, step, (start, gains(start), 0))
    return p, jnp.maximum(jnp.log(gain.max()), 0)


def _cross_validated(near: tuple[jax.Array, jax.Array], bandwidths: Array, folds: int) -> float:
    """The bandwidth with the largest likelihood of target examples that were left out."""
    count = len(near[0])
    number = np.arange(count) % min(folds, count)
    kept = (number != np.arange(min(folds, count))[:, None]).astype(float)
    scores = _held_out(*near, jnp.asarray(bandwidths), jnp.asarray(kept))
    return float(bandwidths[int(np.argmax(np.nan_to_num(np.asarray(scores), nan=-np.inf)))])


@jax.jit
def _held_out(to_target: jax.Array, to_source: jax.Array, bandwidths: jax.Array, kept: jax.Array) -> jax.Array:
    """[B]: mean log-likelihood of the examples that are not `kept` [folds, n_t], over the folds."""
    def score(bandwidth: jax.Array) -> jax.Array:
        at_target, _ = _mixture(to_target, to_source, bandwidth)

        def fold(mask: jax.Array) -> jax.Array:
            # A center that is held out itself would start with a share that only convergence takes away.
            inside = at_target * mask[:at_target.shape[1]]
            p, _ = _proportions(inside, mask / mask.sum(), 1e-3, 300)
            return ((1 - mask) * jnp.log(at_target @ p + TINY)).sum() / (1 - mask).sum()

        return jax.vmap(fold)(kept).mean()

    return jax.lax.map(score, bandwidths)
