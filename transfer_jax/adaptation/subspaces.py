"""Methods that align the principal subspaces of the domains: PCA, subspace alignment, geodesic flow kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.adaptation.domains import Problem
from transfer_jax.adaptation.mapping import Array, Mapping, affine, at_most
from transfer_jax.adaptation.precision import in_double
from transfer_jax.core.errors import UserError


def principal_components(problem: Problem, *, dimensions: int = 20) -> Mapping:
    """PCA of both domains together (Pearson 1901): a common subspace, no adaptation."""
    both = np.concatenate([problem.source, problem.target])
    basis, notes = principal_axes(both, dimensions, "PCA")
    mapped = affine(basis, both.mean(0))
    return Mapping(mapped, mapped, notes)


def subspace_alignment(problem: Problem, *, dimensions: int = 20) -> Mapping:
    """Subspace alignment (Fernando et al. 2013, algorithm 1): with principal axes P_s and P_t of the domains, the
    source is mapped by P_s P_s'P_t, the target by P_t; M = P_s'P_t minimises |P_s M - P_t|_F. Each domain is centered
    on its own mean."""
    p_s, p_t, notes = both_axes(problem, dimensions, "SA")
    return Mapping(affine(p_s @ (p_s.T @ p_t), problem.source.mean(0)), affine(p_t, problem.target.mean(0)), notes)


def geodesic_flow_kernel(problem: Problem, *, dimensions: int = 20) -> Mapping:
    """Geodesic flow kernel (Gong et al. 2012, eq. 5 and 6): inner products summed over all subspaces on the geodesic
    from the source's to the target's. Examples are mapped to 2 x `dimensions` coordinates whose inner product is the
    kernel. Each domain is centered on its own mean; with more dimensions than half of the features subspaces meet, and
    their common directions turn by no angle."""
    p_s, p_t, notes = both_axes(problem, dimensions, "GFK")
    factor = np.asarray(geodesic_factor(p_s, p_t))
    return Mapping(affine(factor, problem.source.mean(0)), affine(factor, problem.target.mean(0)), notes)


@in_double
def geodesic_factor(p_s: Array, p_t: Array) -> jax.Array:
    """F [d, 2k] with FF' = integral over t from 0 to 1 of Phi(t)Phi(t)', Phi being the geodesic from the subspace of
    p_s [d, k] to that of p_t [d, k], both with orthonormal columns."""
    return _geodesic_factor(jnp.asarray(p_s), jnp.asarray(p_t))


@jax.jit
def _geodesic_factor(p_s: jax.Array, p_t: jax.Array) -> jax.Array:
    u, cosines, v = jnp.linalg.svd(p_s.T @ p_t)
    start = p_s @ u
    # Where the target's principal directions leave the source's subspace; their length is the sine of the angle, which
    # tells small angles exactly where the cosine cannot.
    leaving = p_t @ v.T - start * cosines
    sines = jnp.linalg.norm(leaving, axis=0)
    angles = jnp.arctan2(sines, cosines)
    moving = sines > 1e-7
    leaving = jnp.where(moving, leaving / jnp.where(moving, sines, 1), 0)
    # Phi(t) = start cos(t angle) + leaving sin(t angle); integrals of cos^2, sin^2 and sin cos over t.
    safe = jnp.where(moving, angles, 1)
    wave = jnp.where(moving, jnp.sin(2 * safe) / (2 * safe), 1)
    both = jnp.where(moving, (1 - jnp.cos(2 * safe)) / (4 * safe), 0)
    blocks = jnp.stack([jnp.stack([(1 + wave) / 2, both], -1), jnp.stack([both, (1 - wave) / 2], -1)], -1)  # [k, 2, 2]
    values, axes = jnp.linalg.eigh(blocks)
    halves = axes * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]
    return jnp.einsum("dki,kij->dkj", jnp.stack([start, leaving], -1), halves).reshape(len(p_s), -1)


def both_axes(problem: Problem, dimensions: int, method: str) -> tuple[Array, Array, tuple[str, ...]]:
    """Principal axes [d, k] of the source and of the target, as many of each, and notes."""
    p_s, few_s = principal_axes(problem.source, dimensions, method, "source")
    p_t, few_t = principal_axes(problem.target, dimensions, method, "target")
    count = min(p_s.shape[1], p_t.shape[1])
    return p_s[:, :count], p_t[:, :count], (few_s if p_s.shape[1] == count else few_t)


def principal_axes(x: Array, dimensions: int, method: str, what: str = "features") -> tuple[Array, tuple[str, ...]]:
    """The axes [d, k] of the largest variance of x [n, d], orthonormal, and notes; fewer where x has no more."""
    axes, variances = (np.asarray(part) for part in _axes(x))
    noise = max(x.shape) * np.finfo(float).eps * max(variances.max(), (x ** 2).max(initial=0))
    rank = int((variances > noise).sum())
    if rank == 0:
        raise UserError(f"{method}: all examples of the {what} are equal; there is no direction to align")
    count, notes = at_most(dimensions, rank, method)
    return axes[:, :count], notes


@in_double
def _axes(x: Array) -> tuple[jax.Array, jax.Array]:
    return _decomposed(jnp.asarray(x))


@jax.jit
def _decomposed(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Axes in columns and the squares of the singular values, descending, from the smaller of the two products."""
    x = x - x.mean(0)
    if x.shape[1] <= len(x):
        variances, axes = jnp.linalg.eigh(x.T @ x)
        return axes[:, ::-1], variances[::-1]
    variances, left = jnp.linalg.eigh(x @ x.T)
    axes = x.T @ left
    length = jnp.linalg.norm(axes, axis=0)
    return (axes / jnp.where(length > 0, length, 1))[:, ::-1], variances[::-1]
