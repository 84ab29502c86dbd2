"""Several seeds trained together: every array of their state has a leading axis S of "members"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_members(function: Callable, members: int, in_axes: Any = 0, how: str = "auto") -> Callable:
    """`function` of one member -> a function of all, whose results have a leading member axis.

    Args:
      function: takes and returns trees of arrays.
      members: how many there are. A single one runs without any batching rule: a convolution vmapped over one member
        would still be a grouped convolution.
      in_axes: as for `jax.vmap`; 0 or None, or a tree of them, for each argument.
      how: 'vmap', 'map' (one member after the other inside the compiled program) or 'auto': 'map' on a CPU, whose
        cores are busy with one member and whose compiler takes the members one by one in any case, else 'vmap'.
    """
    axes = in_axes if isinstance(in_axes, tuple) else (in_axes,)
    if members == 1:
        return lambda *arguments: jax.tree.map(lambda leaf: jnp.asarray(leaf)[None],
                                               function(*_taken(arguments, axes, 0)))
    if how == "vmap" or (how == "auto" and jax.default_backend() != "cpu"):
        return jax.vmap(function, in_axes=in_axes)
    return lambda *arguments: jax.lax.map(lambda index: function(*_taken(arguments, axes, index)),
                                          jnp.arange(members))


def _taken(arguments: tuple[Any, ...], axes: tuple[Any, ...], index: Any) -> list[Any]:
    """The arguments of one member; `axes` are prefix trees, as in vmap."""
    return [jax.tree.map(lambda axis, part: part if axis is None else jax.tree.map(lambda leaf: leaf[index], part),
                         axis, argument, is_leaf=lambda axis: axis is None)
            for argument, axis in zip(arguments, axes, strict=True)]


def member(tree: Any, index: int) -> Any:
    """The values of one seed."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
