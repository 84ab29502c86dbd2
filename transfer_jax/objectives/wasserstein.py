"""The Wasserstein distance of two domains by a critic whose gradient is held near length 1 (WDGRL)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from transfer_jax.objectives.adversarial import check_one_output
from transfer_jax.objectives.lengths import example_lengths


def wasserstein_distance(source_features: jax.Array, target_features: jax.Array,
                         apply_head: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """E_s D - E_t D, which the encoder lowers (WDGRL; Shen, Qu, Zhang & Yu 2018, algorithm 1).

    The critic's update is `wasserstein_critic`, several times before each of the encoder's (`repeats`, 5 to 10 in the
    paper). Only the encoder descends on this: leave the critic's group out of its update.

    Args:
      source_features, target_features: float [Bs, D], [Bt, D] or maps [B, H, W, C].
      apply_head: array -> one number per row (or pixel: their mean counts).
    """
    difference = jnp.mean(_scores("wasserstein_distance", apply_head, source_features))
    return difference - jnp.mean(_scores("wasserstein_distance", apply_head, target_features))


def wasserstein_critic(source_features: jax.Array, target_features: jax.Array,
                       apply_head: Callable[[jax.Array], jax.Array], key: jax.Array, *, penalty: float = 10.0,
                       ends: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-(E_s D - E_t D) + penalty mean (|dD / dh| - 1)^2, which the critic lowers (WDGRL; Shen et al. 2018).

    The gradient is penalised at points drawn uniformly on the lines between pairs of a source and a target example, and
    at the examples themselves. Its length is taken over all axes of an example. Example i of the larger batch is paired
    with example i modulo its size of the smaller one; batches are in random order.

    Args:
      source_features, target_features: as in `wasserstein_distance`; constants for the gradient.
      apply_head: as there, twice differentiable and without BatchNorm, which would let examples depend on each other.
      key: a typed random key.
      penalty: gamma in the paper.
      ends: whether the examples themselves count, as in the paper; Gulrajani et al. 2017 take the points between.

    Returns:
      The loss, and {'wasserstein_distance', 'gradient_length'}: E_s D - E_t D and the mean length at the points.
    """
    source, target = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (source_features, target_features))
    distance = wasserstein_distance(source, target, apply_head)
    points = interpolates(source, target, key)
    points = jnp.concatenate([points, source, target]) if ends else points
    slopes = jax.grad(lambda x: jnp.sum(_scores("wasserstein_critic", apply_head, x)))(points)
    sizes = example_lengths(slopes)
    loss = penalty * jnp.mean(jnp.square(sizes - 1)) - distance
    return loss, {"wasserstein_distance": distance, "gradient_length": jnp.mean(sizes)}


def interpolates(source: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
    """[Bs, ...], [Bt, ...] -> [max(Bs, Bt), ...]: a uniformly drawn point between the examples of each pair."""
    rows = jnp.arange(max(len(source), len(target)))
    share = jax.random.uniform(key, (len(rows),) + (1,) * (source.ndim - 1))
    first, second = source[rows % len(source)], target[rows % len(target)]
    return first + share * (second - first)


def _scores(name: str, apply_head: Callable[[jax.Array], jax.Array], features: jax.Array) -> jax.Array:
    """float32 [B]: the critic's number for every example, over its pixels the mean."""
    scores = apply_head(features).astype(jnp.float32)
    check_one_output(name, features, scores)
    return jnp.mean(scores.reshape(len(features), -1), axis=1)
