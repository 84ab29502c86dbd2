"""Several seeds trained together: every array of their state has a leading axis S of "members"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_members(function: Callable, members: int, in_axes: Any = 0, out_axes: Any = 0) -> Callable:
    """`jax.vmap` over the leading member axis; a single member runs without any batching rule.

    The plain path matters: a convolution vmapped over one member is still a grouped convolution.
    """
    if members > 1:
        return jax.vmap(function, in_axes=in_axes, out_axes=out_axes)

    def single(*arguments: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        taken = [_take(argument, axis) for argument, axis in zip(arguments, axes, strict=True)]
        return _expand(function(*taken), out_axes)

    return single


def _take(tree: Any, axes: Any) -> Any:
    """Removes the member axis from the parts of `tree` whose axis (a prefix tree, as in vmap) is 0."""
    return jax.tree.map(lambda axis, part: part if axis is None else jax.tree.map(lambda x: x[0], part),
                        axes, tree, is_leaf=lambda axis: axis is None)


def _expand(tree: Any, axes: Any) -> Any:
    return jax.tree.map(lambda axis, part: part if axis is None else jax.tree.map(lambda x: jnp.asarray(x)[None], part),
                        axes, tree, is_leaf=lambda axis: axis is None)


def member(tree: Any, index: int) -> Any:
    """The values of one seed."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
