"""Optimal transport between the batches of two domains (DeepJDOT)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.alignment import vectors
from transfer_jax.objectives.kernels import centred, squared_distances


def joint_transport(source_features: jax.Array, source_labels: jax.Array, target_features: jax.Array,
                    target_task_logits: jax.Array, *, feature_weight: float = 1e-3, label_weight: float = 1e-4,
                    regularization: float = 0.02, iterations: int = 100) -> tuple[jax.Array, dict[str, jax.Array]]:
    """sum_ij plan_ij c_ij, c_ij = feature_weight |f_i - f_j|^2 + label_weight (-log p_j(y_i)): every target example is
    drawn to the features, and to the label, of the source examples that it is coupled with (DeepJDOT; Damodaran et al.
    2018).

    The plan is the cheapest coupling of uniform weights, a constant for the gradient, as in the paper's alternation:
    fix the network, solve for the plan; fix the plan, move the network. The paper solves it exactly; here the
    coupling has the entropy weight `regularization` times the mean cost and is found by Sinkhorn's iterations in log
    space (Cuturi 2013), which run on accelerators; smaller weights come closer and need more iterations.

    Args:
      source_features, target_features: float [Bs, d], [Bt, d].
      source_labels: int [Bs]; one that is no class makes the loss NaN.
      target_task_logits: float [Bt, K].
      feature_weight, label_weight: alpha and lambda_t in the paper.
      regularization: > 0.
      iterations: >= 1.

    Returns:
      The loss, and {'marginal_error'}: how far the plan's source weights are from uniform, the sum of differences.
    """
    if min(regularization, iterations) <= 0:
        raise UserError(f"joint_transport: regularization = {regularization}, iterations = {iterations} do not fit; "
                        f"give numbers > 0")
    if source_features.ndim != 2 or target_task_logits.ndim != 2:
        raise UserError(f"joint_transport needs one vector and one prediction per example, got "
                        f"{source_features.shape} and {target_task_logits.shape}; take a pooled tap and a classifier")
    source, target = centred(*vectors("joint_transport", source_features, target_features, least=1))
    logs = jax.nn.log_softmax(target_task_logits.astype(jnp.float32))
    classes = logs.shape[-1]
    valid = (source_labels >= 0) & (source_labels < classes)
    labels = -logs.T[jnp.clip(source_labels, 0, classes - 1)]
    cost = feature_weight * squared_distances(source, target) + label_weight * labels
    plan = sinkhorn(jax.lax.stop_gradient(cost), regularization, iterations)
    loss = jnp.where(jnp.all(valid), jnp.sum(plan * cost), jnp.nan)
    return loss, {"marginal_error": jnp.sum(jnp.abs(jnp.sum(plan, axis=1) - 1 / len(source)))}


def sinkhorn(cost: jax.Array, regularization: float, iterations: int) -> jax.Array:
    """The entropic coupling of uniform weights for a cost, float32 [N, M] -> [N, M]; columns sum to 1 / M exactly, rows
    to 1 / N in the limit.

    Potentials stand in logarithms, so that costs of thousands of times the regularization do not underflow.

    Args:
      regularization: weight of the entropy, as a share of the mean cost; a cost of 0 throughout gives equal weights.
    """
    mean = jnp.mean(cost)
    scaled = -cost / (regularization * jnp.where(mean > 0, mean, 1.0))
    log_rows, log_columns = -jnp.log(cost.shape[0]), -jnp.log(cost.shape[1])

    def balance(_, potentials):
        _, columns = potentials
        rows = log_rows - jax.nn.logsumexp(scaled + columns[None, :], axis=1)
        return rows, log_columns - jax.nn.logsumexp(scaled + rows[:, None], axis=0)

    start = jnp.zeros(cost.shape[0], jnp.float32), jnp.zeros(cost.shape[1], jnp.float32)
    rows, columns = jax.lax.fori_loop(0, iterations, balance, start)
    return jnp.exp(scaled + rows[:, None] + columns[None, :])
