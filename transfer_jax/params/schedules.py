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


def polynomial(step: Array, total_steps: int, *, power: float = 2.0, final: float = 0.0) -> Array:
    """From 1 to `final` like (1 - p)^power with p the progress; power = 1 is `linear`."""
    return final + (1 - final) * (1 - _progress(step, total_steps)) ** power


def one_cycle(step: Array, total_steps: int, *, rise: float = 0.3, start: float = 0.04, final: float = 4e-6) -> Array:
    """Half a cosine from `start` up to 1 over the share `rise` of the steps, then another down to `final`.

    The learning rate of the 1cycle policy (Smith & Topin 2018), in cosines instead of straight lines; the momentum
    stays as it is. Use it without warm-up: it has its own.
    """
    p = _progress(step, total_steps)
    up = start + (1 - start) * _half_cosine(p / rise)
    down = 1 + (final - 1) * _half_cosine((p - rise) / (1 - rise))
    return jnp.where(p < rise, up, down)


def slanted_triangular(step: Array, total_steps: int, *, rise: float = 0.1, ratio: float = 32.0) -> Array:
    """A short straight rise from 1 / `ratio` to 1 over the share `rise`, a long straight fall back to 1 / `ratio`
    (Howard & Ruder 2018, eq. 3: cut_frac is `rise`). Use it without warm-up: it has its own."""
    p = _progress(step, total_steps)
    height = jnp.where(p < rise, p / rise, (1 - p) / (1 - rise))
    return (1 + height * (ratio - 1)) / ratio


def steps_down(step: Array, total_steps: int, *, at: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1) -> Array:
    """1, multiplied by `factor` at each of the shares `at` of the steps (He et al. 2016)."""
    passed = jnp.sum(_progress(step, total_steps) >= jnp.asarray(at, jnp.float32))
    return jnp.asarray(factor, jnp.float32) ** passed


def inverse_decay(step: Array, total_steps: int, *, alpha: float = 10.0, beta: float = 0.75) -> Array:
    """(1 + alpha p)^-beta with p the progress: the learning rate of Ganin et al. 2016, section 5.2.2."""
    return (1 + alpha * _progress(step, total_steps)) ** -beta


def exponential(step: Array, total_steps: int, *, start: float = 1.0, final: float = 1.0) -> Array:
    """From `start` to `final` by the same factor a step; both above 0."""
    return start * (final / start) ** _progress(step, total_steps)


def ganin(step: Array, total_steps: int, *, gamma: float = 10.0) -> Array:
    """2 / (1 + exp(-gamma p)) - 1: the rise of the adversarial weight of Ganin et al. 2016, section 5.2.2."""
    return 2 / (1 + jnp.exp(-gamma * _progress(step, total_steps))) - 1


def _half_cosine(p: Array) -> Array:
    """From 0 to 1 with p."""
    return 0.5 * (1 - jnp.cos(jnp.pi * jnp.clip(p, 0.0, 1.0)))


def _progress(step: Array, total_steps: int) -> Array:
    return jnp.clip(jnp.asarray(step, jnp.float32) / max(total_steps, 1), 0.0, 1.0)


SCHEDULES = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "polynomial": polynomial,
    "one_cycle": one_cycle,
    "slanted_triangular": slanted_triangular,
    "steps_down": steps_down,
    "inverse_decay": inverse_decay,
    "exponential": exponential,
    "ganin": ganin,
}
