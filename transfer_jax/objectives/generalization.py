"""Terms over the losses of several labelled domains, for a domain that is not there yet.

`domains` numbers the domain of every example, 0 to count - 1; domains without weight in a batch count for nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError


def irm_penalty(logits: jax.Array, labels: jax.Array, weights: jax.Array, domains: jax.Array, *, count: int,
                halves: bool = False) -> jax.Array:
    """The mean over the domains of (d/ds R_e(s f) at s = 1)^2: invariant risk minimisation, IRMv1 (Arjovsky et al.
    2019, section 3.1).

    R_e is the mean cross-entropy of a domain; its derivative in the scale s of the scores is the mean of sum_k (p_k -
    q_k) z_k, which needs no second differentiation. The square of a batch's mean is biased upwards by its variance;
    with `halves` the factors come from the even and the odd examples of a domain, as DomainBed does. Stands beside the
    task's loss, with a weight that starts small (`weight_schedule`); the paper's grows to 10^4 and more.

    Args:
      logits: float z [B, K].
      labels: int [B]; one that is no class makes the loss NaN.
      weights: float [B].
      domains: int [B].
      count: number of domains.
    """
    check_domains("irm_penalty", logits, labels, domains, count)
    z = logits.astype(jnp.float32)
    slopes = jnp.sum((jax.nn.softmax(z) - jax.nn.one_hot(labels, z.shape[-1])) * z, axis=-1)
    slopes = _or_nan(slopes, labels, z.shape[-1])
    members = domain_members(domains, weights, count)
    if not halves:
        means, present = domain_means(slopes, members)
        return _mean(jnp.square(means), present)
    # An example's place among those of its domain says which half it is in.
    places = jnp.sum(jnp.cumsum(members > 0, axis=0) * (members > 0), axis=-1)
    parts = [domain_means(slopes, jnp.where((places % 2 == odd)[:, None], members, 0.0)) for odd in (1, 0)]
    return _mean(parts[0][0] * parts[1][0], parts[0][1] & parts[1][1])


def risk_variance(logits: jax.Array, labels: jax.Array, weights: jax.Array, domains: jax.Array, *,
                  count: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The variance, over the number of domains, of the domains' mean cross-entropies (V-REx; Krueger et al.
    2021). Arguments as in `irm_penalty`; one domain alone has none.

    Returns:
      The loss, and {'worst_risk'}: the largest mean cross-entropy.
    """
    check_domains("risk_variance", logits, labels, domains, count)
    risks, present = domain_risks(logits, labels, weights, domains, count)
    mean = _mean(risks, present)
    return _mean(jnp.square(risks - mean), present), {"worst_risk": jnp.max(jnp.where(present, risks, -jnp.inf))}


def group_dro(logits: jax.Array, labels: jax.Array, weights: jax.Array, domains: jax.Array,
              carried: dict[str, jax.Array], *, count: int, step: float = 0.01,
              ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """sum_g q_g R_g, where the weights q of the domains follow their losses: q_g <- q_g exp(step R_g), divided by the
    sum (GroupDRO; Sagawa et al. 2020, algorithm 1).

    In the place of the task's loss. q is updated first, is constant for the gradient, and lasts from step to step; a
    domain that is absent from a batch has R_g = 0 there.

    Args:
      logits, labels, weights, domains, count: as in `irm_penalty`.
      carried: {'domain_weights': float32 q [count]}.
      step: eta.

    Returns:
      The loss, {'worst_risk', 'largest_weight'}, and the new q.
    """
    check_domains("group_dro", logits, labels, domains, count)
    risks, present = domain_risks(logits, labels, weights, domains, count)
    before = jnp.log(jnp.maximum(carried["domain_weights"], jnp.finfo(jnp.float32).tiny))
    after = jax.nn.softmax(before + step * jax.lax.stop_gradient(risks))
    metrics = {"worst_risk": jnp.max(jnp.where(present, risks, -jnp.inf)), "largest_weight": jnp.max(after)}
    return jnp.sum(after * risks), metrics, {"domain_weights": after}


def domain_risks(logits: jax.Array, labels: jax.Array, weights: jax.Array, domains: jax.Array,
           count: int) -> tuple[jax.Array, jax.Array]:
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.sum(jax.nn.one_hot(labels, logs.shape[-1]) * logs, axis=-1)
    return domain_means(_or_nan(losses, labels, logs.shape[-1]), domain_members(domains, weights, count))


def domain_members(domains: jax.Array, weights: jax.Array, count: int) -> jax.Array:
    """float32 [B, count]: the weight of every example in its domain's column."""
    return jax.nn.one_hot(domains, count, dtype=jnp.float32) * weights.astype(jnp.float32)[:, None]


def domain_means(values: jax.Array, members: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weighted mean of the values [B] in each domain [count], 0 for an absent one, and bool: which are present."""
    masses = jnp.sum(members, axis=0)
    totals = jnp.sum(jnp.where(members > 0, members * values[:, None], 0.0), axis=0)
    return jnp.where(masses > 0, totals / jnp.where(masses > 0, masses, 1.0), 0.0), masses > 0


def _mean(values: jax.Array, present: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(present, values, 0.0)) / jnp.maximum(jnp.sum(present), 1)


def _or_nan(values: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    return jnp.where((labels >= 0) & (labels < classes), values, jnp.nan)


def check_domains(name: str, logits: jax.Array, labels: jax.Array, domains: jax.Array | None, count: int) -> None:
    if domains is None:
        raise UserError(f"{name} compares domains, but the examples of its stream have none; merge the data sets of "
                        f"several, each with its `domain`")
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UserError(f"{name} needs outputs [batch, classes] and labels [batch], got {logits.shape} and "
                        f"{labels.shape}")
    if count < 1:
        raise UserError(f"{name}: count = {count} does not fit; give the number of domains")
