"""CORAL: the source gets the covariance of the target."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.adaptation.domains import Problem
from transfer_jax.adaptation.mapping import Array, Mapping, affine
from transfer_jax.adaptation.precision import in_double
from transfer_jax.core.errors import UserError


def coral(problem: Problem, *, ridge: float = 1.0, center: bool = True) -> Mapping:
    """Correlation alignment (Sun, Feng and Saenko 2016, algorithm 1): the source is whitened with C_s + ridge I and
    coloured with C_t + ridge I; the target stays as it is.

    Args:
        ridge: 1 in the paper, for features of variance one; with 0 the mapped source has exactly the covariance of the
            target, within the directions in which it varies.
        center: also move the source to the mean of the target; the paper has features with mean zero. False: no mean is
            touched.
    """
    if ridge < 0:
        raise UserError(f"CORAL with ridge {ridge}; give 0 or more")
    matrix = np.asarray(alignment(problem.source, problem.target, ridge))
    if not center:
        return Mapping(affine(matrix, np.zeros(len(matrix))), lambda x: x)
    return Mapping(affine(matrix, problem.source.mean(0), problem.target.mean(0)), lambda x: x)


@in_double
def alignment(source: Array, target: Array, ridge: float) -> jax.Array:
    """(C_s + ridge I)^(-1/2) (C_t + ridge I)^(1/2) [d, d]; a singular C_s has its pseudo-inverse."""
    return _alignment(jnp.asarray(source), jnp.asarray(target), ridge)


@jax.jit
def _alignment(source: jax.Array, target: jax.Array, ridge: float) -> jax.Array:
    values, axes = jnp.linalg.eigh(_covariance(source) + ridge * jnp.eye(source.shape[1]))
    solid = values > values.max() * len(values) * jnp.finfo(values.dtype).eps
    whiten = (axes * jnp.where(solid, jnp.where(solid, values, 1) ** -0.5, 0)) @ axes.T
    values, axes = jnp.linalg.eigh(_covariance(target) + ridge * jnp.eye(target.shape[1]))
    return whiten @ (axes * jnp.sqrt(jnp.maximum(values, 0))) @ axes.T


def _covariance(x: jax.Array) -> jax.Array:
    """[d, d]; zeros for a single example."""
    x = x - x.mean(0)
    return x.T @ x / max(len(x) - 1, 1)
