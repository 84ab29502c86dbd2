"""What terms carry from step to step, as it is at a stage's start.

Such a term takes it as `carried` and returns (value, metrics, carried). It lies in checkpoints, for every seed. Each
function here takes those options of its term that it needs; `size` is the number of examples of its largest stream.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError


def equal_domain_weights(*, count: int) -> dict[str, jax.Array]:
    """{'domain_weights': float32 [count], 1 / count each}, for `group_dro`."""
    _check("group_dro", "count", count)
    return {"domain_weights": jnp.full(count, 1 / count, jnp.float32)}


def no_class_given(*, size: int) -> dict[str, jax.Array]:
    """{'given': float32 [size], -1 each}, for `flexmatch`: no example has been given a class."""
    _check("flexmatch", "size", size)
    return {"given": jnp.full(size, -1.0, jnp.float32)}


def _check(term: str, option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{term}: {option} = {value} does not fit; give a number >= 1")


# Kind of a term -> its state at the start, from its options.
CARRIED: dict[str, Callable[..., dict[str, jax.Array]]] = {
    "group_dro": equal_domain_weights,
    "flexmatch": no_class_given,
}
