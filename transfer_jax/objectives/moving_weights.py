"""Weights of losses that move from step to step: by how losses fall, by the lengths of gradients, by a meta-gradient.

Each keeps its weights in `carried` (see `objectives/combining.py`), which starts as the function `..._start` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.objectives.balancing import Metrics
from transfer_jax.objectives.gramian import combined, gramian

Carried = dict[str, Any]
TINY = 1e-8  # keeps logarithms and quotients of losses finite


def dynamic_average(losses: Mapping[str, jax.Array], carried: Carried, *, window: int = 100,
                    temperature: float = 2.0) -> tuple[jax.Array, Metrics, Carried]:
    """sum_i w_i L_i with w = T softmax(r / temperature), where r_i is the mean of L_i over the last window by its mean
    over the window before (DWA; Liu, Johns & Davison 2019, "End-to-end multi-task learning with attention", eq. 7).

    A loss that falls slowly gets more weight. In the first two windows all weights are 1. The paper's window is an
    epoch.

    Args:
      losses: float32 scalars by name of term.
      carried: see `dynamic_average_start`.
      window: steps (with `accumulate`: micro-batches), >= 1.
      temperature: > 0; the larger, the more equal the weights.

    Returns:
      The total, {'weights': w [T]}, and what is carried on.
    """
    if window < 1 or temperature <= 0:
        raise UserError(f"dynamic_average: window = {window}, temperature = {temperature} do not fit; give window >= 1 "
                        f"and temperature > 0")
    values = jnp.stack([loss.astype(jnp.float32) for loss in losses.values()])
    known = carried["windows"] >= 2
    rates = jnp.where(known, carried["last"] / jnp.where(known, carried["before"] + TINY, 1.0), 1.0)
    weights = len(losses) * jax.nn.softmax(rates / temperature)
    total, count = carried["total"] + jax.lax.stop_gradient(values), carried["count"] + 1
    full = count == window
    moved = {"total": jnp.where(full, 0.0, total), "count": jnp.where(full, 0, count),
             "last": jnp.where(full, total / window, carried["last"]),
             "before": jnp.where(full, carried["last"], carried["before"]),
             "windows": carried["windows"] + full}
    return jnp.sum(weights * values), {"weights": weights}, moved


def dynamic_average_start(terms: int) -> Carried:
    """Sums over the current window and means over the two before, float32 [T], with counts."""
    none = jnp.zeros(terms, jnp.float32)
    return {"total": none, "last": none, "before": none, "count": jnp.int32(0), "windows": jnp.int32(0)}


def famo(losses: Mapping[str, jax.Array], carried: Carried) -> tuple[jax.Array, Metrics, Carried]:
    """Fast adaptive multitask optimization (Liu et al. 2023, algorithm 1): the gradient is that of c sum_i z_i log L_i,
    with z the softmax of learned logits and c = 1 / sum_i (z_i / L_i), so that the weights of the losses add up to 1.

    After the step, `famo_after` moves the logits toward the losses whose logarithm fell least. Losses must be positive.

    Args:
      losses: float32 scalars > 0 by name of term.
      carried: see `famo_start`.

    Returns:
      The total, {'weights': c z / L [T]}, and what is carried on.
    """
    values = jnp.stack([loss.astype(jnp.float32) for loss in losses.values()])
    shares = jax.nn.softmax(carried["logits"])
    scale = jax.lax.stop_gradient(1 / jnp.sum(shares / (values + TINY)))
    weights = jax.lax.stop_gradient(scale * shares / (values + TINY))
    total = scale * jnp.sum(shares * jnp.log(values + TINY))
    return total, {"weights": weights}, {**carried, "losses": jax.lax.stop_gradient(values)}


def famo_start(terms: int, *, lr: float = 0.025) -> Carried:
    """Logits of the weights, their optimizer, and the losses of the last step, [T] each."""
    logits = jnp.zeros(terms, jnp.float32)
    return {"logits": logits, "optimizer": _weight_optimizer("famo", lr).init(logits),
            "losses": jnp.ones(terms, jnp.float32)}


def famo_after(carried: Carried, losses: jax.Array, *, lr: float = 0.025, decay: float = 0.001) -> Carried:
    """What is carried after a step that brought the losses [T] of its batch from `carried['losses']` to `losses`.

    The slope of logit i is J'(log L before - log L after) with J that of the softmax (eq. 9), plus `decay` times the
    logit; Adam of the rate `lr` follows it.
    """
    gains = jnp.log(carried["losses"] + TINY) - jnp.log(losses + TINY)
    _, pull = jax.vjp(jax.nn.softmax, carried["logits"])
    slopes = pull(gains)[0] + decay * carried["logits"]
    change, optimizer = _weight_optimizer("famo", lr).update(slopes, carried["optimizer"], carried["logits"])
    return {**carried, "logits": carried["logits"] + change, "optimizer": optimizer}


def grad_norm(gradients: jax.Array, losses: jax.Array, carried: Carried, *, alpha: float = 1.5,
              lr: float = 0.025) -> tuple[jax.Array, dict[str, jax.Array], Carried]:
    """sum_i w_i g_i, where w moves so that the lengths w_i |g_i| come to their mean times r_i^alpha (GradNorm; Chen et
    al. 2018, eq. 1 and 2).

    r_i is L_i / L_i(0) over its mean: a task that trains slowly gets longer gradients. The slope of w_i is
    `length_slopes`; it reaches nothing but the weights. Adam of the rate `lr` follows it, then the weights are scaled
    to add up to T. What one term alone trains moves by w_i times its gradient, as in the paper.

    Args:
      gradients: float [T, P]; in the paper of the last shared layer, which `gradients_of` may come close to.
      losses: float32 [T], > 0; those of the first step are L(0).
      carried: see `grad_norm_start`.
      alpha: >= 0; 0 asks for equal lengths.

    Returns:
      float32 [P], {'weights': w [T]}, and what is carried on.
    """
    if alpha < 0:
        raise UserError(f"grad_norm: alpha = {alpha} does not fit; give a number >= 0")
    of = gramian(gradients)
    weights = carried["weights"]
    initial = jnp.where(carried["initial"] == 0, losses, carried["initial"])
    slopes = length_slopes(weights, of.norms, losses / jnp.maximum(initial, TINY), alpha)
    change, optimizer = _weight_optimizer("grad_norm", lr).update(slopes, carried["optimizer"], weights)
    moved = jnp.maximum(weights + change, 0.0)
    moved = moved * len(moved) / jnp.maximum(jnp.sum(moved), TINY)
    return (combined(of.units, weights * of.norms), {"weights": weights},
            {"weights": moved, "initial": initial, "optimizer": optimizer})


def length_slopes(weights: jax.Array, norms: jax.Array, rates: jax.Array, alpha: float) -> jax.Array:
    """d/dw of sum_i |w_i n_i - c_i| with c_i = mean(w n) (rate_i / mean rate)^alpha held constant; all [T]."""
    lengths = weights * norms
    targets = jnp.mean(lengths) * (rates / jnp.maximum(jnp.mean(rates), TINY)) ** alpha
    return norms * jnp.sign(lengths - targets)


def grad_norm_start(terms: int, *, lr: float = 0.025) -> Carried:
    """Weights of 1, their optimizer, and initial losses of 0: not seen yet; [T] each."""
    weights = jnp.ones(terms, jnp.float32)
    return {"weights": weights, "initial": jnp.zeros(terms, jnp.float32),
            "optimizer": _weight_optimizer("grad_norm", lr).init(weights)}


def auto_lambda(gradients: jax.Array, names: tuple[str, ...],
                lookahead: Callable[[jax.Array, jax.Array], jax.Array], carried: Carried, *,
                primary: tuple[str, ...] = (), reach: float = 0.01,
                lr: float = 1e-3) -> tuple[jax.Array, dict[str, jax.Array], Carried]:
    """sum_i w_i g_i, where w descends the loss of the primary terms after a step along that sum (Auto-Lambda; Liu et
    al. 2022, section 3, with one step of plain descent ahead).

    With theta' = theta - reach sum_i w_i g_i the slope of w_i is -reach g_i . grad L_primary(theta'), exactly: no
    finite difference is taken. Adam of the rate `lr` follows it; weights do not fall below 0. The paper takes the
    second loss on other batches than the first: name a stream for them in the update's `lookahead`. Costs one more
    forward and backward pass. What one term alone trains moves by w_i times its gradient.

    Args:
      gradients: float [T, P].
      names: of the terms.
      lookahead: (direction [P], weights [T]) -> gradient [P] of the weighted losses at the parameters less `direction`.
      carried: see `auto_lambda_start`.
      primary: names of terms; (): all.
      reach: rate of the step ahead, > 0.

    Returns:
      float32 [P], {'weights': w [T]}, and what is carried on.
    """
    if reach <= 0:
        raise UserError(f"auto_lambda: reach = {reach} does not fit; give a number > 0")
    for name in primary:
        if name not in names:
            raise unknown("term", name, names, "auto_lambda, primary")
    wanted = jnp.asarray([float(not primary or name in primary) for name in names], jnp.float32)
    weights = carried["weights"]
    direction = jnp.matmul(weights, gradients, precision="highest")
    ahead = lookahead(reach * direction, wanted)
    slopes = -reach * jnp.matmul(gradients, ahead, precision="highest")
    change, optimizer = _weight_optimizer("auto_lambda", lr).update(slopes, carried["optimizer"], weights)
    moved = {"weights": jnp.maximum(weights + change, 0.0), "optimizer": optimizer}
    return direction, {"weights": weights}, moved


def auto_lambda_start(terms: int, *, initial: float = 0.1, lr: float = 1e-3) -> Carried:
    """Equal weights [T], `initial` each, and their optimizer."""
    if initial <= 0:
        raise UserError(f"auto_lambda: initial = {initial} does not fit; give a number > 0")
    weights = jnp.full(terms, initial, jnp.float32)
    return {"weights": weights, "optimizer": _weight_optimizer("auto_lambda", lr).init(weights)}


def _weight_optimizer(rule: str, lr: float) -> optax.GradientTransformation:
    if lr <= 0:
        raise UserError(f"{rule}: lr = {lr} does not fit; give a number > 0")
    return optax.adam(lr)
