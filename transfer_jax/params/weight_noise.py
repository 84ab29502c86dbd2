"""Noise on the parameters that a training step runs with; evaluation and the parameters themselves stay free of it.

A method is a function `(leaf, start, key, *, arguments) -> leaf` of a parameter now and at the stage's start.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, bind

Flat = dict[str, jax.Array]


class WeightNoiseSpec(Component):
    """A method of `WEIGHT_NOISE` with its arguments; `include` must match the whole path of a parameter, the default
    takes everything but heads and weights of terms."""

    include: str = r"(?!heads/|objective/).*"


def mixout(leaf: jax.Array, start: jax.Array, key: jax.Array, *, p: float = 0.9) -> jax.Array:
    """Each element is that of the start with probability p, scaled such that its mean stays (Lee, Cho & Kang 2020,
    section 3): (M w0 + (1 - M) w - p w0) / (1 - p) = w0 + (1 - M) (w - w0) / (1 - p). Dropout toward the start.

    Args:
      leaf, start: w and w0, float of one shape.
      key: typed PRNG key of the mask M.
      p: 0 <= p < 1; 0 changes nothing.
    """
    if not 0 <= p < 1:
        raise UserError(f"mixout: p = {p:g} is no probability below 1; the paper uses 0.7 to 0.9")
    if p == 0:
        return leaf
    own = jax.random.bernoulli(key, 1 - p, leaf.shape)
    return start + jnp.where(own, (leaf - start) / (1 - p), jnp.zeros((), leaf.dtype))


WEIGHT_NOISE: dict[str, Callable[..., jax.Array]] = {"mixout": mixout}


def make_noise(spec: WeightNoiseSpec, trainable: list[str], where: str) -> Callable[[Flat, Flat, jax.Array], Flat]:
    """(moving leaves, those of the start, key) -> the leaves that the step runs with.

    Raises:
      UserError: for an unknown method or argument, or an `include` that matches no trainable parameter.
    """
    method = bind(WEIGHT_NOISE, spec, "weight noise", where, supplied=("leaf", "start", "key"))
    try:
        chosen = {path for path in trainable if re.fullmatch(spec.include, path)}
    except re.error as error:
        raise UserError(f"{where}.include = {spec.include!r} is not a valid regular expression ({error})") from error
    if not chosen:
        raise UserError(f"{where}.include = {spec.include!r} matches none of the {len(trainable)} trainable parameters "
                        f"(such as {', '.join(trainable[:3])}); change the regex or drop the noise")
    method(jnp.zeros(1), jnp.zeros(1), jax.random.key(0))  # its arguments are checked before training
    return functools.partial(_disturbed, method, frozenset(chosen))


def _disturbed(method: Callable, chosen: frozenset[str], moving: Mapping[str, jax.Array],
               start: Mapping[str, jax.Array], key: jax.Array) -> Flat:
    def one(path: str, leaf: jax.Array) -> jax.Array:
        # A key of its own for every path, whatever else moves.
        own = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
        return method(leaf, jax.lax.stop_gradient(start[path]), own)

    return {path: one(path, leaf) if path in chosen else leaf for path, leaf in moving.items()}
