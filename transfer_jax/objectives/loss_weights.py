"""Losses of several terms become one, by weights that are drawn, learned or follow from the losses."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.objectives.balancing import Metrics


def random_weights(losses: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, Metrics]:
    """sum_i w_i L_i with w the softmax of T standard normal numbers, drawn anew at every step (RLW; Lin et al. 2022).

    The weights add up to 1, so the loss is on average a T-th of the plain sum.

    Args:
      losses: float32 scalars by name of term.
      key: a typed random key.

    Returns:
      The total, and {'weight_<name>': w}.
    """
    weights = jax.nn.softmax(jax.random.normal(key, (len(losses),), jnp.float32))
    total = sum((w * loss for w, loss in zip(weights, losses.values(), strict=True)), jnp.zeros((), jnp.float32))
    return total, _named(losses, weights)


def geometric_mean(losses: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
    """(prod_i L_i)^(1 / T), in logarithms (GLS; Chennupati et al. 2019, MultiNet++, section 3).

    Its gradient is that of weights (total / T) / L_i. Losses must be positive: one of 0 makes the gradient infinite, a
    negative one the total NaN. So a term's weight may not start at 0.

    Args:
      losses: float32 scalars > 0 by name of term.

    Returns:
      The total, and {'weight_<name>': the factor of that loss's gradient}.
    """
    values = jnp.stack([loss.astype(jnp.float32) for loss in losses.values()])
    total = jnp.exp(jnp.mean(jnp.log(values)))
    return total, _named(losses, total / len(losses) / values)


def smooth_tchebycheff(losses: Mapping[str, jax.Array], *, smoothness: float = 1.0,
                       ideals: Mapping[str, float] | None = None) -> tuple[jax.Array, Metrics]:
    """mu log sum_i exp((L_i - z_i) / mu), a smooth maximum of the losses (STCH; Lin et al. 2024, section 3).

    The preferences of the paper are the terms' own weights, which scale L before it comes here; an ideal value is in
    that scale. The gradient is that of the weights softmax((L - z) / mu), which add up to 1: the largest loss as mu
    goes to 0, equal weights as it grows.

    Args:
      losses: float32 scalars by name of term.
      smoothness: mu, > 0.
      ideals: z, the best value that a loss can have, by name of term; 0 where it is not given.

    Returns:
      The total, and {'weight_<name>': the factor of that loss's gradient}.

    Raises:
      UserError: for a smoothness that is not positive, or an ideal of a term that does not exist.
    """
    if smoothness <= 0:
        raise UserError(f"smooth_tchebycheff: smoothness = {smoothness} does not fit; give a number > 0")
    ideals = dict(ideals or {})
    for name in ideals:
        if name not in losses:
            raise unknown("term", name, losses, "the ideals of the objective")
    over = jnp.stack([loss.astype(jnp.float32) - ideals.get(name, 0.0) for name, loss in losses.items()]) / smoothness
    return smoothness * jax.nn.logsumexp(over), _named(losses, jax.nn.softmax(over))


def impartial_losses(losses: Mapping[str, jax.Array],
                     log_variances: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
    """sum_i e^s_i L_i - s_i with learned s: at their optimum all scaled losses are 1 (IMTL-L; Liu et al. 2021, "Towards
    impartial multi-task learning", section 3.2).

    The engine's learned number of a term is the log variance v = -s, as for `uncertainty`, from which this differs
    by its factors: e^-v L + v, of optimum v = log L. Losses must be positive. The total can be negative.

    Args:
      losses: float32 scalars > 0 by name of term.
      log_variances: -s, float32 scalars of the same names. Exclude them from weight decay.

    Returns:
      The total, and {'weight_<name>': e^s}.
    """
    if set(losses) != set(log_variances):
        raise UserError(f"impartial losses need a log variance for every term: terms {sorted(losses)}, log variances "
                        f"{sorted(log_variances)}; name them alike")
    learned = {name: log_variances[name].astype(jnp.float32) for name in losses}
    total = sum((jnp.exp(-learned[name]) * loss + learned[name] for name, loss in losses.items()),
                jnp.zeros((), jnp.float32))
    return total, {f"weight_{name}": jnp.exp(-value) for name, value in learned.items()}


def _named(losses: Mapping[str, jax.Array], weights: jax.Array) -> Metrics:
    return {f"weight_{name}": jax.lax.stop_gradient(w) for name, w in zip(losses, weights, strict=True)}
