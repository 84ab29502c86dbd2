"""Transfer components: projections in which the domains have equal means, also class by class."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.adaptation.domains import Problem
from transfer_jax.adaptation.kernels import gaussian, median_distance, squared_distances
from transfer_jax.adaptation.mapping import Array, Mapping, at_most
from transfer_jax.adaptation.normalisation import unit as of_length_one
from transfer_jax.adaptation.precision import in_double
from transfer_jax.core.errors import UserError, unknown

KERNELS = ("primal", "linear", "rbf")


def transfer_components(problem: Problem, *, dimensions: int = 20, ridge: float = 1.0, kernel: str = "linear",
                        bandwidth: float | None = None, unit: bool = False) -> Mapping:
    """Transfer component analysis (Pan et al. 2011): the projection W that minimises the squared distance of the
    domains' means, tr W'KLKW, plus ridge |W|^2, subject to W'KHKW = I.

    The columns that solve this are kept at the scale W'(KLK + ridge I)W = 1, as in Pan's form of the problem (maximise
    the variance for a given distance), so that directions in which the domains vary more count for more.

    Args:
        ridge: added to KLK, L having norm one.
        kernel: of all examples, 'linear' or 'rbf'; 'primal' projects the features themselves (K is X), which differs
            from 'linear' in what the ridge holds down.
        bandwidth: of 'rbf'; None: the median of the distances.
        unit: scale each example to length one, before and after, as Long et al. (2013) do for JDA in their code. Their
            accuracies of TCA come out without.
    """
    return _adapted(problem, lambda labels: (means(problem.labels, len(problem.target), None), (1.0,)), 1, dimensions,
                    ridge, kernel, bandwidth, unit, "TCA")


def joint_distribution(problem: Problem, *, dimensions: int = 20, ridge: float = 1.0, kernel: str = "linear",
                       bandwidth: float | None = None, unit: bool = True, iterations: int = 10) -> Mapping:
    """Joint distribution adaptation (Long et al. 2013, algorithm 1): TCA whose L is that of the domains plus that of
    each class, target classes being those that the base classifier gives them in the projection before. L is built
    anew in each iteration. Other arguments: `transfer_components`."""
    return _adapted(problem, lambda labels: (means(problem.labels, len(problem.target), labels), None), iterations,
                    dimensions, ridge, kernel, bandwidth, unit, "JDA")


def balanced_distribution(problem: Problem, *, dimensions: int = 20, ridge: float = 1.0, kernel: str = "linear",
                          bandwidth: float | None = None, unit: bool = True, iterations: int = 10,
                          balance: float = 0.5) -> Mapping:
    """Balanced distribution adaptation (Wang et al. 2017, eq. 6): JDA with the weight 1 - `balance` for the distance of
    the domains and `balance` for those of the classes. At one half it is JDA, since L is scaled to norm one."""
    if not 0 <= balance <= 1:
        raise UserError(f"BDA with balance {balance}; give a number from 0 to 1")

    def differences(labels: Array | None) -> tuple[Array, tuple[float, ...]]:
        found = means(problem.labels, len(problem.target), labels)
        if len(found) == 1:
            return found, (1.0,)  # no labels yet
        return found, (1 - balance, *[balance] * (len(found) - 1))

    return _adapted(problem, differences, iterations, dimensions, ridge, kernel, bandwidth, unit, "BDA")


def means(labels: Array, target_count: int, target_labels: Array | None) -> Array:
    """[1 + C, n] coefficients e of all examples, source first: sum_i e_i x_i is the mean of the source less that of the
    target; in the rows after the first, of each class that both have. L is the sum of ee'."""
    n_s = len(labels)
    domains = np.concatenate([np.full(n_s, 1 / n_s), np.full(target_count, -1 / target_count)])
    if target_labels is None:
        return domains[None]
    rows = [domains]
    for label in np.intersect1d(labels, target_labels):
        of_source, of_target = labels == label, target_labels == label
        rows.append(np.concatenate([of_source / of_source.sum(), -(of_target / of_target.sum())]))
    return np.stack(rows)


@in_double
def projection(features: Array, differences: Array, shares: Array, ridge: float) -> tuple[Array, Array]:
    """All solutions w of KHK w = value (K L K / |L|_F + ridge I) w, values descending, scaled to
    w'(K L K / |L|_F + ridge I)w = 1.

    Args:
        features: K [n, m], kernel or features, a row an example.
        differences: e [c, n]; L = sum_c shares_c e_c e_c'.

    Returns:
        W [m, r] and values [r], r being the number of values above 0.
    """
    axes, values = (np.asarray(part) for part in _projection(jnp.asarray(features), jnp.asarray(differences),
                                                             jnp.asarray(shares), ridge))
    # Rounding is relative to the features, which may be far from zero and hardly vary.
    largest = max(values.max(initial=0), (np.asarray(features) ** 2).sum() / ridge)
    rank = int((values > largest * len(values) * np.finfo(float).eps).sum())
    return axes[:, :rank], values[:rank]


@jax.jit
def _projection(features: jax.Array, differences: jax.Array, shares: jax.Array, ridge: float) -> tuple[jax.Array, ...]:
    moved = jnp.sqrt(shares)[:, None] * (differences @ features)
    norm = jnp.sqrt((shares[:, None] * shares * (differences @ differences.T) ** 2).sum())
    distance = moved.T @ moved / norm + ridge * jnp.eye(features.shape[1])
    centered = features - features.mean(0)
    scatter = centered.T @ centered
    # Positive definite on the one side, so the pencil becomes an ordinary symmetric matrix.
    lower = jnp.linalg.cholesky(distance)
    half = jax.scipy.linalg.solve_triangular(lower, scatter, lower=True)
    symmetric = jax.scipy.linalg.solve_triangular(lower, half.T, lower=True)
    values, axes = jnp.linalg.eigh((symmetric + symmetric.T) / 2)
    found = jax.scipy.linalg.solve_triangular(lower.T, axes[:, ::-1], lower=False)
    return found, values[::-1]


def _adapted(problem: Problem, differences: Callable[[Array | None], tuple[Array, tuple[float, ...] | None]],
             iterations: int, dimensions: int, ridge: float, kernel: str, bandwidth: float | None, unit: bool,
             method: str) -> Mapping:
    if ridge <= 0 or iterations < 1:
        raise UserError(f"{method} with ridge {ridge} and {iterations} iterations; give a ridge above 0 and "
                        f"1 iteration or more")
    scaled = of_length_one if unit else np.asarray
    features = _features(problem, kernel, bandwidth, scaled, method)
    both = features(np.concatenate([problem.source, problem.target]))
    n_s, known = len(problem.source), problem.target_labels >= 0
    labels, notes, weights = None, (), None
    for _ in range(iterations):
        e, shares = differences(labels)
        found, _ = projection(both, e, np.ones(len(e)) if shares is None else np.array(shares), ridge)
        if not found.shape[1]:
            raise UserError(f"{method}: all examples are equal, or lie so far from zero that they hardly vary beside "
                            f"that; there is no direction to project on; standardise the features")
        count, notes = at_most(dimensions, found.shape[1], method)
        weights = found[:, :count]
        z = scaled(both @ weights)
        if iterations > 1:
            labels = np.where(known, problem.target_labels, problem.classify(z[:n_s], problem.labels, z[n_s:]))

    def mapped(x: Array) -> Array:
        return scaled(features(x) @ weights)

    return Mapping(mapped, mapped, notes, labels)


def _features(problem: Problem, kernel: str, bandwidth: float | None, scaled: Callable[[Array], Array],
              method: str) -> Callable[[Array], Array]:
    """x [n, d] -> what is projected [n, m]: the features, or their kernel with the examples of both domains."""
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS, method)

    both = scaled(np.concatenate([problem.source, problem.target]))
    if kernel == "primal":
        return scaled
    if kernel == "linear":
        axes = np.asarray(_scaled_axes(both))
        return lambda x: scaled(x) @ axes
    width = bandwidth or median_distance(both[:len(problem.source)], both[len(problem.source):])
    if width == 0:
        raise UserError(f"{method}: all examples are equal; there is no direction to project on")
    return lambda x: np.asarray(_rbf(scaled(x), both, width))


@in_double
def _scaled_axes(both: Array) -> jax.Array:
    """V S of both = U S V' [d, d]: with K = both both' any solution W lies in the span of U, and K U = both V S, so the
    kernel's problem is that of the features both V S, with as many unknowns as features instead of examples."""
    x = jnp.asarray(both)
    values, axes = jnp.linalg.eigh(x.T @ x)
    return axes * jnp.sqrt(jnp.maximum(values, 0))


@in_double
def _rbf(x: Array, both: Array, bandwidth: float) -> jax.Array:
    return jax.jit(lambda x, y: gaussian(squared_distances(x, y), bandwidth))(jnp.asarray(x), jnp.asarray(both))
