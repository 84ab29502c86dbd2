"""Gradients of tasks are changed, one against the other or entry by entry, before they are added up."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.gramian import combined, gramian


def gradvac(gradients: jax.Array, key: jax.Array, carried: dict[str, jax.Array], *,
            momentum: float = 0.01) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """Gradient Vaccine: see `vaccinate`; each task draws its order from `key`, and the targets are carried.

    Args:
      gradients: float [T, P], the flattened gradient of each task's loss.
      key: a typed random key.
      carried: see `gradvac_start`.
      momentum: beta in the paper, in [0, 1].

    Returns:
      float32 [P], {'weights' [T], 'target_cosine': mean over the pairs}, and what is carried on.
    """
    tasks = len(gradients)
    orders = jax.vmap(lambda k: jax.random.permutation(k, tasks))(jax.random.split(key, tasks))
    total, weights, targets = vaccinate(gradients, orders, carried["targets"], momentum=momentum)
    mean = jnp.sum(targets) / max(tasks * (tasks - 1), 1)
    return total, {"weights": weights, "target_cosine": mean}, {"targets": targets.astype(jnp.float32)}


def gradvac_start(terms: int) -> dict[str, jax.Array]:
    """Targets of 0, float32 [T, T]."""
    return {"targets": jnp.zeros((terms, terms), jnp.float32)}


def vaccinate(gradients: jax.Array, orders: jax.Array, targets: jax.Array, *,
              momentum: float = 0.01) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient Vaccine (Wang et al. 2021, algorithm 1): gradients that are less similar than usual are
    turned toward each other.

    Task i goes through the others j in the order of `orders[i]`. With phi the cosine of its vector v and the ORIGINAL
    g_j, t its target and phi < t, v becomes v + |v| (t sqrt(1 - phi^2) - phi sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2))
    g_j, whose cosine with g_j is t; every target then moves to (1 - momentum) t + momentum phi. Targets of 0 that stay
    are PCGrad.

    Args:
      gradients: float [T, P]; one of 0 neither turns nor is turned toward.
      orders: int [T, T], rows are permutations of the tasks (a task's own place is passed over).
      targets: float [T, T], cosines below 1 in absolute value; 0 at the start.
      momentum: beta in the paper, in [0, 1].

    Returns:
      The sum, float32 [P] (float64 for float64), its weights of the gradients [T], and the new targets [T, T].
    """
    if not 0 <= momentum <= 1:
        raise UserError(f"gradient vaccine: momentum = {momentum} does not fit; give a number from 0 to 1")
    of = gramian(gradients)
    products, largest = of.products()
    lengths = of.norms / largest
    dtype = products.dtype

    def turn(task: jax.Array, order: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        def toward(carry: tuple[jax.Array, jax.Array], other: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            weights, row = carry
            length = jnp.sqrt(jnp.maximum(weights @ products @ weights, 0.0))
            meets = (other != task) & (length > 0) & (lengths[other] > 0)
            both = jnp.where(meets, length * lengths[other], 1.0)
            cosine = jnp.clip(weights @ products[other] / both, -1.0, 1.0)
            target = row[other]
            # |v| / |g_j|, times what turns the angle from acos(cosine) to acos(target).
            opening = jnp.sqrt(1 - cosine**2) * target / jnp.sqrt(1 - target**2) - cosine
            share = length / jnp.where(meets, lengths[other], 1.0) * opening
            weights = weights.at[other].add(jnp.where(meets & (cosine < target), share, 0.0))
            moved = (1 - momentum) * target + momentum * cosine
            return (weights, row.at[other].set(jnp.where(meets, moved, target))), None

        own = jax.nn.one_hot(task, len(products), dtype=dtype)
        return jax.lax.scan(toward, (own, row), order)[0]

    weights, targets = jax.vmap(turn)(jnp.arange(len(products)), orders, targets.astype(dtype))
    weights = jnp.sum(weights, axis=0)
    return combined(of.units, weights * of.norms), weights, targets


def grad_drop(gradients: jax.Array, key: jax.Array, *, leak: float = 0.0) -> jax.Array:
    """In every entry one sign is drawn, and only the gradients of that sign are added up (GradDrop; Chen et al. 2020,
    algorithm 1).

    The positive sign has the probability (1 + sum_i g_i / sum_i |g_i|) / 2. The expectation over `key` is not the
    sum of the gradients. The paper drops at a layer's activations; here the entries are those of the shared parameters.

    Args:
      gradients: float [T, P].
      key: a typed random key.
      leak: the share of every gradient that is always kept, in [0, 1]; 1 is the plain sum.

    Returns:
      float32 [P] (float64 for float64).
    """
    if not 0 <= leak <= 1:
        raise UserError(f"grad_drop: leak = {leak} does not fit; give a number from 0 to 1")
    gradients = gradients.astype(jnp.promote_types(gradients.dtype, jnp.float32))
    # Summed by sign first, so that the compiler does not draw the random numbers once more for every task.
    upward, downward = jnp.sum(jnp.maximum(gradients, 0), axis=0), jnp.sum(jnp.minimum(gradients, 0), axis=0)
    total, size = upward + downward, upward - downward
    positive = (1 + total / jnp.where(size > 0, size, 1.0)) / 2
    kept = jnp.where(jax.random.uniform(key, total.shape, total.dtype) < positive, upward, downward)
    return leak * total + (1 - leak) * kept
