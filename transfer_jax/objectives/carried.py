"""What terms carry from step to step, as it is at a stage's start.

Such a term takes it as `carried` and returns (value, metrics, carried). It lies in checkpoints, for every seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError


def equal_domain_weights(*, count: int) -> dict[str, jax.Array]:
    """{'domain_weights': float32 [count], 1 / count each}, for `group_dro`."""
    if count < 1:
        raise UserError(f"group_dro: count = {count} does not fit; give the number of domains")
    return {"domain_weights": jnp.full(count, 1 / count, jnp.float32)}


def no_class_given(*, size: int) -> dict[str, jax.Array]:
    """{'given': float32 [size], -1 each}, for `flexmatch`: no example has been given a class."""
    return {"given": jnp.full(size, -1.0, jnp.float32)}


# Kind of term -> function of (some of) the term's own options that returns a tree of arrays. An option `size` is the
# number of examples of the term's largest stream.
CARRIED: dict[str, Callable[..., Any]] = {
    "group_dro": equal_domain_weights,
    "flexmatch": no_class_given,
}
