"""Schedules: a factor between 0 and 1 that multiplies a learning rate or a loss weight over the steps of a stage.

Each is a function `(step, total_steps, *, arguments) -> float32 scalar`; `step` counts from 0 and may be traced.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def constant(step: Array, total_steps: int) -> Array:
    """1 throughout."""
    del total_steps
    return jnp.ones_like(jnp.asarray(step, jnp.float32))


def cosine(step: Array, total_steps: int, *, final: float = 0.0) -> Array:
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017, eq. 5 without restarts)."""
    return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, total_steps)))


def linear(step: Array, total_steps: int, *, final: float = 0.0) -> Array:
    """A straight line from 1 to `final`."""
    return 1 - (1 - final) * _progress(step, total_steps)


def inverse_decay(step: Array, total_steps: int, *, alpha: float = 10.0, beta: float = 0.75) -> Array:
    """(1 + alpha p)^-beta with p the progress: the learning rate of Ganin et al. 2016, section 5.2.2."""
    return (1 + alpha * _progress(step, total_steps)) ** -beta


def ganin(step: Array, total_steps: int, *, gamma: float = 10.0) -> Array:
    """2 / (1 + exp(-gamma p)) - 1: the rise of the adversarial weight of Ganin et al. 2016, section 5.2.2."""
    return 2 / (1 + jnp.exp(-gamma * _progress(step, total_steps))) - 1


def _progress(step: Array, total_steps: int) -> Array:
    return jnp.clip(jnp.asarray(step, jnp.float32) / max(total_steps, 1), 0.0, 1.0)


SCHEDULES = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "inverse_decay": inverse_decay,
    "ganin": ganin,
}
