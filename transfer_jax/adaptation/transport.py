"""Optimal transport of the source onto the target (Courty et al. 2017)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye as sparse_eye
from scipy.sparse import kron, vstack

from transfer_jax.adaptation.domains import Problem
from transfer_jax.adaptation.kernels import squared_distances
from transfer_jax.adaptation.mapping import Array, Mapping
from transfer_jax.adaptation.precision import in_double
from transfer_jax.core.errors import UserError


def optimal_transport(problem: Problem, *, regularisation: float = 0.05, class_regularisation: float = 0.0,
                      steps: int = 10000, tolerance: float = 1e-6) -> Mapping:
    """Optimal transport domain adaptation: every source example goes to the mean of the target examples that its mass
    is sent to (barycentric map, Ferradans et al. 2014); the target stays. A source example that was not there moves as
    its nearest neighbour that was.

    Args:
        regularisation: weight of the entropy (Cuturi 2013), a share of the median cost, which is the squared distance;
            0: the exact plan, by linear programming.
        class_regularisation: weight, also a share of the median cost, of the term that keeps apart the classes of the
            source that send mass to one target example (Courty et al. 2017, section 4.2), by majorisation.
        steps, tolerance: of Sinkhorn's iterations; the tolerance is on the marginals, as a share of the mass.
    """
    if regularisation < 0 or class_regularisation < 0:
        raise UserError(f"optimal transport with regularisation {regularisation} and {class_regularisation}; give 0 or "
                        f"more")
    if class_regularisation and not regularisation:
        raise UserError("optimal transport regularises classes only together with the entropy; give a regularisation "
                        "above 0")
    cost = costs(problem.source, problem.target)
    if regularisation == 0:
        plan, error = exact_plan(cost), 0.0
    else:
        unit = float(np.median(cost)) or float(cost.max()) or 1.0
        plan, error = (np.asarray(part) for part in class_plan(
            cost / unit, problem.labels, regularisation, class_regularisation, steps, tolerance))
    moved = barycentric(plan, problem.target)
    notes = (f"Sinkhorn stopped {float(error):.1e} from its marginals; give a larger regularisation or more steps",
             ) if error > 100 * tolerance else ()
    return Mapping(_displaced(problem.source, moved), lambda x: x, notes)


def class_transport(problem: Problem, *, regularisation: float = 0.05, class_regularisation: float = 0.1,
                    steps: int = 10000, tolerance: float = 1e-6) -> Mapping:
    """`optimal_transport` with the classes of the source kept apart."""
    return optimal_transport(problem, regularisation=regularisation, class_regularisation=class_regularisation,
                             steps=steps, tolerance=tolerance)


@in_double
def costs(source: Array, target: Array) -> Array:
    """Squared distances float64 [n_s, n_t]."""
    return np.asarray(jax.jit(squared_distances)(jnp.asarray(source), jnp.asarray(target)))


def exact_plan(cost: Array) -> Array:
    """The cheapest plan [n_s, n_t] between uniform masses, by assignment where the sizes agree, else by linear
    programming (scipy's HiGHS)."""
    n, m = cost.shape
    if n == m:
        rows, columns = linear_sum_assignment(cost)
        plan = np.zeros((n, m))
        plan[rows, columns] = 1 / n
        return plan
    rows, columns = kron(sparse_eye(n), np.ones((1, m))), kron(np.ones((1, n)), sparse_eye(m))
    found = linprog(cost.ravel(), A_eq=vstack([rows, columns]).tocsr(),
                    b_eq=np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)]), method="highs")
    if found.x is None:
        raise UserError(f"the exact plan between {n} and {m} examples was not found ({found.message}); give a "
                        f"regularisation above 0")
    return found.x.reshape(n, m)


@in_double
def sinkhorn_plan(cost: Array, regularisation: float, steps: int = 10000, tolerance: float = 1e-9) -> Array:
    """The plan [n_s, n_t] between uniform masses that minimises <cost, plan> - regularisation * entropy (Cuturi 2013).
    It is rounded to exact marginals (Altschuler et al. 2017, algorithm 2)."""
    plan, _ = _sinkhorn(jnp.asarray(cost), regularisation, tolerance, steps)
    return np.asarray(_rounded(plan))


def barycentric(plan: Array, target: Array) -> Array:
    """[n_s, d]: where the mass of each source example goes on average."""
    return plan @ target / plan.sum(1, keepdims=True)


@in_double
def class_plan(cost: Array, labels: Array, regularisation: float, class_regularisation: float, steps: int,
               tolerance: float) -> tuple[jax.Array, jax.Array]:
    """The plan [n_s, n_t] with exact marginals for costs and weights in one unit, and how far from its marginals
    Sinkhorn's method stopped; ten steps of majorisation for the classes of the source `labels` int [n_s]."""
    onehot = jnp.asarray(np.eye(labels.max() + 1)[labels])
    cost = jnp.asarray(cost)
    plan, error = _sinkhorn(cost, regularisation, tolerance, steps)
    for _ in range(10 if class_regularisation else 0):
        plan, error = _sinkhorn(cost + class_regularisation * _class_cost(plan, onehot), regularisation, tolerance,
                                steps)
    return _rounded(plan), error


@jax.jit
def _class_cost(plan: jax.Array, onehot: jax.Array) -> jax.Array:
    """The slope of sum_j sum_c sqrt(mass of class c at j): the linear majorant of that concave function."""
    mass = onehot.T @ plan * len(plan)  # [C, n_t]; relative to the mass of one source example
    return 0.5 * onehot @ (mass + 1e-3) ** -0.5


@functools.partial(jax.jit, static_argnames="steps")
def _sinkhorn(cost: jax.Array, regularisation: float, tolerance: float, steps: int) -> tuple[jax.Array, jax.Array]:
    """Iterations on the logarithms of the scalings, so that nothing underflows; plan and error of its marginals."""
    n, m = cost.shape
    scores = -cost / regularisation

    def step(carried: tuple) -> tuple:
        f, g, _, count = carried
        g = -jnp.log(m) - jax.nn.logsumexp(scores + f[:, None], axis=0)
        rows = jax.nn.logsumexp(scores + g, axis=1)
        error = jnp.abs(jnp.exp(f + rows) - 1 / n).sum()
        return -jnp.log(n) - rows, g, error, count + 1

    def going(carried: tuple) -> jax.Array:
        _, _, error, count = carried
        return (count < steps) & (error > tolerance)

    infinite = jnp.asarray(jnp.inf, cost.dtype)
    f, g, error, _ = jax.lax.while_loop(going, step, (jnp.zeros(n, cost.dtype), jnp.zeros(m, cost.dtype), infinite, 0))
    return jnp.exp(scores + f[:, None] + g), error


@jax.jit
def _rounded(plan: jax.Array) -> jax.Array:
    n, m = plan.shape
    plan = plan * jnp.minimum(1 / n / plan.sum(1), 1)[:, None]
    plan = plan * jnp.minimum(1 / m / plan.sum(0), 1)
    rows, columns = 1 / n - plan.sum(1), 1 / m - plan.sum(0)
    missing = rows.sum()
    return plan + jnp.where(missing > 0, rows[:, None] * columns / jnp.where(missing > 0, missing, 1), 0)


def _displaced(source: Array, moved: Array):
    def mapped(x: Array) -> Array:
        nearest = costs(x, source).argmin(1)
        return x + (moved - source)[nearest]

    return mapped
