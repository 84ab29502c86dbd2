"""How much a step on one term's loss helps the others, measured in the compiled step.

Lookahead affinity of tasks (Fifty et al. 2021, "Efficiently identifying task groupings for multi-task learning"):
Z_ij = 1 - L_j(theta_i) / L_j(theta), where theta_i are the parameters after a plain gradient step on L_i
alone of what two terms or more reach; heads stay. Both losses are those of one batch, with the same random draws.
`evaluation/grouping.py` makes groups of its mean over the training.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from transfer_jax.objectives.combining import Combination
from transfer_jax.objectives.spec import AffinitySpec
from transfer_jax.training.choice import STEPS
from transfer_jax.training.gradients import Losses, Metrics, measures, task_gradients
from transfer_jax.training.state import Flat

PREFIX = "affinity/"


def affinities(losses: Losses, moving: Flat, combination: Combination, rate: float) -> tuple[jax.Array, jax.Array]:
    """Z [T, T] (row: whose step, column: whose loss), and the gradients of what is shared [T, P].

    Costs a gradient of every term and T more forward passes. A loss that is 0 has affinities of 0.

    Args:
      losses: see `Losses`.
      moving: the leaves that move.
      rate: of the step, > 0.
    """
    found, _ = task_gradients(losses, moving, combination, "shared", skip=False)

    def after(step: Flat) -> jax.Array:
        return jnp.stack(losses({**moving, **{path: moving[path] - rate * leaf for path, leaf in step.items()}})[0])

    matrix = jnp.concatenate([rows.reshape(len(found.values), -1) for rows in found.rows.values()], axis=1)
    known = found.values != 0
    ratio = jax.lax.map(after, found.rows) / jnp.where(known, found.values, 1.0)
    return jnp.where(known, 1 - ratio, 0.0), matrix


def affinity_metrics(spec: AffinitySpec, combination: Combination, step: jax.Array, skip: bool, losses: Losses,
                     moving: Flat) -> Metrics:
    """`affinity/<i>/<j>`, of a combination of losses also `cosine/<i>/<j>`, at every `spec.every`-th step; in others 0.

    Logged are means over the steps that were measured. With `skip` those in which anything is not finite are left out.
    """
    names = combination.names

    def measured(_: Any) -> Metrics:
        matrix, gradients = affinities(losses, moving, combination, spec.rate)
        found = {f"{PREFIX}{a}/{b}": matrix[i, j] for i, a in enumerate(names) for j, b in enumerate(names)}
        if not combination.rules_gradients:
            found |= {name: value for name, value in measures(names, gradients).items() if name.startswith("cosine/")}
        found |= {group + STEPS: jnp.float32(1) for group in dict.fromkeys(name.split("/")[0] for name in found)}
        if not skip:
            return found
        fine = jnp.stack([jnp.isfinite(value) for value in found.values()]).all() & jnp.isfinite(gradients).all()
        return {name: jnp.where(fine, value, 0.0) for name, value in found.items()}

    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measured, None))
    return jax.lax.cond(step % spec.every == 0, measured, lambda _: blank, None)
