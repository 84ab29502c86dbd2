"""Terms that hold the outputs or the features of the model to those that it had at the stage's start."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean


def distillation(logits: jax.Array, start_logits: jax.Array, weights: jax.Array, *, temperature: float = 2.0,
                 squared: bool = True) -> jax.Array:
    """KL(p0 | p) of the softened predictions softmax(z / T), now p and at the start p0, times T^2 if `squared`.

    With the head of the old task on the data of a new one this is Learning without Forgetting (Li & Hoiem 2016, eq.
    2-4, there without T^2 and as a cross-entropy: the same gradient); with the factor the gradient keeps its size at
    every T (Hinton, Vinyals & Dean 2015).

    Args:
      logits, start_logits: float [B, K] or [B, H, W, K] with every pixel a prediction; the latter are constants.
      weights: float [B].
      temperature: T > 0.
    """
    now, then = (jax.nn.log_softmax(z.astype(jnp.float32) / temperature) for z in (logits, start_logits))
    divergence = weighted_mean(jnp.sum(jnp.exp(then) * (then - now), axis=-1), weights)
    return divergence * temperature ** 2 if squared else divergence


def features_to_start(features: jax.Array, start_features: jax.Array, weights: jax.Array, *,
                      alpha: float = 0.01) -> jax.Array:
    """alpha / 2 sum_c mean_xy (f_c - f0_c)^2, mean over the examples: behaviour held in place of parameters.

    The feature term of DELTA (Li et al. 2019, eq. 4) with equal attention to all channels and with the mean over
    positions, so that its strength does not depend on the image size. One term per tap.

    Args:
      features, start_features: float [B, d] or maps [B, ..., d]; the latter are constants.
      weights: float [B].
    """
    return _distance(features, start_features, weights, jnp.ones(()), alpha)


def delta(features: jax.Array, start_features: jax.Array, weights: jax.Array, channel_weights: jax.Array, *,
          alpha: float = 0.01) -> jax.Array:
    """alpha / 2 sum_c a_c mean_xy (f_c - f0_c)^2, mean over the examples: DELTA (Li et al. 2019, section 3).

    `features_to_start` with attention: channels whose loss would be missed are held more. The options of the statistic
    `channel_weights` are options of the term, which also needs the `task` whose loss counts.

    Args:
      features, start_features, weights, alpha: as in `features_to_start`.
      channel_weights: a, float32 [d] with mean 1.
    """
    return _distance(features, start_features, weights, channel_weights, alpha)


def _distance(features: jax.Array, start_features: jax.Array, weights: jax.Array, channels: jax.Array,
              alpha: float) -> jax.Array:
    if features.shape != start_features.shape:
        raise UserError(f"features {list(features.shape)} now, but {list(start_features.shape)} at the start; take "
                        f"both from the same tap")
    squared = jnp.square(features.astype(jnp.float32) - start_features.astype(jnp.float32))
    return alpha / 2 * weighted_mean(jnp.sum(channels * squared, axis=-1), weights)


def co_tuning(logits: jax.Array, labels: jax.Array, label_probs: jax.Array | None, weights: jax.Array,
              relationship: jax.Array) -> jax.Array:
    """Cross-entropy of the source head with p(source class | label): Co-Tuning (You et al. 2020, section 3).

    Keeps the head of the source task (`head`) in use beside the target task's own term; the paper's weight is 2.3. The
    options of the statistic `relationship` (calibration, the reverse way) are options of the term, which also needs the
    target `task`.

    Args:
      logits: of the source head, float [B, K source].
      labels: of the target task, int [B]; one that is no class gives NaN, as in `cross_entropy`.
      label_probs: float [B, K target] in their place where examples are mixed, or None.
      weights: float [B].
      relationship: float32 [K target, K source], rows sum to 1.
    """
    classes = relationship.shape[0]
    targets = jax.nn.one_hot(labels, classes) if label_probs is None else label_probs.astype(jnp.float32)
    wanted = jnp.matmul(targets, relationship, precision="highest")
    losses = -jnp.sum(wanted * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
    valid = (labels >= 0) & (labels < classes) | (label_probs is not None)
    return weighted_mean(jnp.where(valid, losses, jnp.nan), weights)
