"""Equal blocks in a row: recomputed in the backward pass, or run by one scan over stacked parameters."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

STACKED = "blocks"  # the sub-tree of a scanned backbone; unscanned it is block0, block1, ...


def rematerialized(block: type[nn.Module], on: bool) -> type[nn.Module]:
    """`block`, whose `__call__(x, train, ...)` is computed again in the backward pass if `on`."""
    return nn.remat(block, static_argnums=(2,)) if on else block


def block_steps(make: Callable[[str, int], nn.Module], count: int, train: bool, *context: Any,
                until: str | None = None, scan: bool = False) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Steps `block0`, `block1` ... for `walk`.

    Args:
        make: (name, number) -> block with `__call__(x, train, *context)` that keeps the shape of x.
        context: further arguments, the same for each block (a mask).
        until: the tap where the backbone ends; a scan runs no block behind it.
        scan: all blocks are one `lax.scan` whose parameters are stacked along a leading axis under `blocks`: the
            program stays as small as one block. Blocks must then differ in nothing but their parameters.
    """
    names = [f"block{i}" for i in range(count)]
    if not scan:
        return {name: functools.partial(_run, make, name, i, train, context) for i, name in enumerate(names)}
    length = names.index(until) + 1 if until in names else count
    outputs: dict[str, jax.Array] = {}

    def run_all(x: jax.Array) -> jax.Array:
        def body(block, carry, _):
            carry = block(carry, train, *context)
            return carry, carry

        every = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True},
                        length=length)(make(STACKED, 0), x, None)[1]
        outputs.update(zip(names, every, strict=False))
        return outputs[names[0]]

    return {names[0]: run_all} | {name: functools.partial(_taken, outputs, name) for name in names[1:]}


def stack_blocks(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves `block0/a`, `block1/a`, ... -> one leaf `blocks/a` with a leading axis; other leaves stay as they are."""
    stacks: dict[str, dict[int, Any]] = {}
    others: dict[str, Any] = {}
    for path, leaf in flat.items():
        found = re.fullmatch(r"block(\d+)/(.+)", path)
        if found:
            stacks.setdefault(f"{STACKED}/{found[2]}", {})[int(found[1])] = leaf
        else:
            others[path] = leaf
    return others | {path: np.stack([leaves[i] for i in range(len(leaves))]) for path, leaves in stacks.items()}


def unstack_blocks(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_blocks`."""
    leaves: dict[str, Any] = {}
    for path, leaf in flat.items():
        if path.startswith(f"{STACKED}/"):
            leaves |= {f"block{i}/{path.removeprefix(f'{STACKED}/')}": part for i, part in enumerate(leaf)}
        else:
            leaves[path] = leaf
    return leaves


def _run(make: Callable, name: str, number: int, train: bool, context: tuple[Any, ...], x: jax.Array) -> jax.Array:
    return make(name, number)(x, train, *context)


def _taken(outputs: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    del x
    return outputs[name]
