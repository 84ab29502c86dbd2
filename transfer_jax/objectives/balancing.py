"""How the losses, or the gradients, of several terms become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError, unknown

Metrics = dict[str, jax.Array]


def fixed(losses: Mapping[str, jax.Array], *, weights: Mapping[str, float] | None = None) -> tuple[jax.Array, Metrics]:
    """sum_i weight_i L_i; terms that `weights` does not name have weight 1.

    Args:
      losses: float32 scalars by name of term.
      weights: numbers by name of term.

    Raises:
      UserError: for a weight of a term that does not exist.
    """
    weights = dict(weights or {})
    for name in weights:
        if name not in losses:
            raise unknown("term", name, losses, "the weights of the objective")
    total = sum((weights.get(name, 1.0) * loss for name, loss in losses.items()), jnp.zeros((), jnp.float32))
    return total, {}


def uncertainty(losses: Mapping[str, jax.Array], log_variances: Mapping[str, jax.Array],
                kinds: Mapping[str, Literal["classification", "regression"]]) -> tuple[jax.Array, Metrics]:
    """Learned weights from homoscedastic uncertainty (Kendall, Gal & Cipolla 2018, eq. 7 and 10).

    With s = log sigma^2 a classification loss contributes exp(-s) L + s / 2 and a regression loss
    exp(-s) L / 2 + s / 2. At its optimum s is log(2 L) for classification and log L for regression. The total can be
    negative.

    Args:
      losses: float32 scalars by name of term; cross-entropies, or squared errors.
      log_variances: the learned s, float32 scalars, of the same names. Exclude them from weight decay.
      kinds: 'classification' or 'regression' by name of term.

    Returns:
      The total, and {'weight_<name>': the factor of that loss}.
    """
    if set(losses) != set(log_variances) or not set(losses) <= set(kinds):
        raise UserError(f"uncertainty weights need a log variance and a kind for every term: terms {sorted(losses)}, "
                        f"log variances {sorted(log_variances)}, kinds {sorted(kinds)}; name them alike")
    total, metrics = jnp.zeros((), jnp.float32), {}
    for name, loss in losses.items():
        factor = _uncertainty_factor(name, kinds[name]) * jnp.exp(-log_variances[name].astype(jnp.float32))
        total += factor * loss + log_variances[name].astype(jnp.float32) / 2
        metrics[f"weight_{name}"] = factor
    return total, metrics


def initial_log_variances(names: Iterable[str], *, initial: float = 0.0) -> dict[str, jax.Array]:
    """The parameters of `uncertainty` at the start: a float32 scalar per term; 0 means sigma = 1."""
    return {name: jnp.asarray(initial, jnp.float32) for name in names}


def sum_gradients(gradients: jax.Array) -> tuple[jax.Array, Metrics]:
    """The plain sum of the task gradients [T, P] -> float32 [P]: what `fixed` does, with measures of the gradients."""
    return jnp.sum(gradients.astype(jnp.float32), axis=0), {"weights": jnp.ones(len(gradients), jnp.float32)}


def pcgrad(gradients: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Gradient surgery (Yu et al. 2020, algorithm 1): see `project_conflicts`; each task draws its order from `key`.

    Args:
      gradients: float [T, P], the flattened gradient of each task's loss. One of 0 takes no part.
      key: a typed random key.

    Returns:
      float32 [P], and {'weights': those of the gradients [T]}.
    """
    tasks = len(gradients)
    orders = jax.vmap(lambda k: jax.random.permutation(k, tasks))(jax.random.split(key, tasks))
    total, weights = project_conflicts(gradients, orders)
    return total, {"weights": weights}


def project_conflicts(gradients: jax.Array, orders: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum over tasks of their gradients, each freed of its components against the others' gradients.

    Task i goes through the others j in the order of `orders[i]` and, where v . g_j < 0, replaces its vector v by
    v - (v . g_j / |g_j|^2) g_j, with the ORIGINAL g_j. All vectors stay combinations of the original gradients, so
    only their inner products are needed: one product [T, P] x [P, T], then arithmetic on T numbers.

    Args:
      gradients: float [T, P].
      orders: int [T, T], rows are permutations of the tasks (a task's own place is passed over).

    Returns:
      float32 [P], and its weights of the gradients [T].
    """
    gradients = gradients.astype(jnp.float32)
    products = jnp.matmul(gradients, gradients.T, precision="highest")

    def surgery(task, order):
        def project(coefficients, other):
            inner = jnp.sum(coefficients * products[other])
            conflict = (inner < 0) & (other != task)
            share = jnp.where(conflict, inner / jnp.where(conflict, products[other, other], 1.0), 0.0)
            return coefficients.at[other].add(-share), None

        own = jax.nn.one_hot(task, len(gradients), dtype=jnp.float32)
        return jax.lax.scan(project, own, order)[0]

    weights = jnp.sum(jax.vmap(surgery)(jnp.arange(len(gradients)), orders), axis=0)
    return jnp.matmul(weights, gradients, precision="highest"), weights


def _uncertainty_factor(name: str, kind: str) -> float:
    if kind not in ("classification", "regression"):
        raise UserError(f"uncertainty weights: term {name!r} has kind {kind!r}; use 'classification' or 'regression'")
    return 1.0 if kind == "classification" else 0.5
