"""Terms that look at the parameters or at unlabelled predictions instead of labels."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean

# Fresh heads have no start worth keeping.
BACKBONES = r"(?!heads/|objective/).*"


def l2_to_start(parameters: Mapping[str, jax.Array], initial_parameters: Mapping[str, jax.Array], *,
                alpha: float = 0.01, include: str = BACKBONES) -> jax.Array:
    """alpha / 2 sum_j (w_j - w0_j)^2 over all chosen parameters (L2-SP; Li, Grandvalet & Davoine 2018).

    A sum over the whole tree, not a mean per tensor: the pull on a parameter does not depend on its tensor's size.
    Switch the weight decay of those parameters off beside it, and give new heads `l2_norm`, as the paper does.

    Args:
      parameters: the trainable leaves by path, any shapes and float dtypes.
      initial_parameters: their values at the start of the stage; constants for the gradient.
      alpha: strength.
      include: regex that must match the whole path; the default takes everything but heads.

    Raises:
      UserError: if the regex is invalid or matches no trainable parameter.
    """
    total = jnp.zeros((), jnp.float32)
    for path in _chosen("l2_to_start", parameters, include):
        start = jax.lax.stop_gradient(initial_parameters[path]).astype(jnp.float32)
        total += jnp.sum(jnp.square(parameters[path].astype(jnp.float32) - start))
    return alpha / 2 * total


def ewc(parameters: Mapping[str, jax.Array], initial_parameters: Mapping[str, jax.Array],
        fisher: Mapping[str, jax.Array], *, strength: float = 1.0, include: str = BACKBONES) -> jax.Array:
    """strength / 2 sum_j F_j (w_j - w0_j)^2: elastic weight consolidation (Kirkpatrick et al. 2017, eq. 3).

    Holds what the model knew of the data that `measured_on` names, through the head `head`, most where F says that it
    mattered. The options of the statistic `fisher` are options of the term: with `after` and `decay` one F holds a
    whole sequence of tasks (online EWC; Schwarz et al. 2018).

    Args:
      parameters, initial_parameters, include: as in `l2_to_start`.
      fisher: path -> diagonal of the Fisher information at the start, float32 of the shape of the leaf.
      strength: lambda.
    """
    total = jnp.zeros((), jnp.float32)
    for path in _chosen("ewc", parameters, include):
        start = jax.lax.stop_gradient(initial_parameters[path]).astype(jnp.float32)
        total += jnp.sum(fisher[path] * jnp.square(parameters[path].astype(jnp.float32) - start))
    return strength / 2 * total


def l2_norm(parameters: Mapping[str, jax.Array], *, beta: float = 0.01, include: str = ".*") -> jax.Array:
    """beta / 2 sum_j w_j^2 over the parameters whose whole path matches `include` (arguments as in `l2_to_start`)."""
    total = jnp.zeros((), jnp.float32)
    for path in _chosen("l2_norm", parameters, include):
        total += jnp.sum(jnp.square(parameters[path].astype(jnp.float32)))
    return beta / 2 * total


def entropy(logits: jax.Array, weights: jax.Array, *, diversity: float = 0.0) -> jax.Array:
    """Mean entropy of the predictions, in nats, less `diversity` times the entropy of the mean prediction.

    diversity = 0 is entropy minimisation (Grandvalet & Bengio 2005); diversity = 1 maximises the mutual
    information of input and class (Krause, Perona & Gomes 2010), which keeps the classes from collapsing into one.

    Args:
      logits: float [B, K], or [B, H, W, K] with every pixel a prediction.
      weights: float [B].
      diversity: >= 0.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    conditional = weighted_mean(-jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1), weights)
    if diversity == 0:
        return conditional
    means = jax.vmap(weighted_mean, (-1, None))(jnp.exp(log_probabilities), weights)
    # The floor keeps the slope of m log m finite at a class that nobody is given.
    return conditional + diversity * jnp.sum(means * jnp.log(jnp.maximum(means, jnp.finfo(jnp.float32).tiny)))


def information_maximization(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """H(Y | X) - H(Y), minus the mutual information of input and predicted class: `entropy` with diversity 1.

    Predictions become sure one by one and stay spread over the classes together (Krause, Perona & Gomes 2010; Liang, Hu
    & Feng 2020, SHOT). Between -log K and 0.

    Args:
      logits: float [B, K], or [B, H, W, K] with every pixel a prediction.
      weights: float [B].
    """
    return entropy(logits, weights, diversity=1.0)


def _chosen(name: str, parameters: Mapping[str, jax.Array], include: str) -> list[str]:
    try:
        paths = [path for path in parameters if re.fullmatch(include, path)]
    except re.error as error:
        raise UserError(f"{name}: include = {include!r} is not a valid regular expression ({error})") from error
    if not paths:
        raise UserError(f"{name}: include = {include!r} matches none of the {len(parameters)} trainable parameters "
                        f"(such as {', '.join(list(parameters)[:3]) or 'none'}); change the regex or drop the term")
    return paths
