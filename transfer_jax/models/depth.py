"""The blocks of a backbone from its input to its output: what is frozen, unfrozen, cut or decayed as one."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import jax

from transfer_jax.core.paths import flatten
from transfer_jax.models.taps import Backbone


@dataclass(frozen=True)
class Block:
    """The parameters between two taps: the tap behind them, and the first parts of their paths in the backbone."""

    tap: str
    modules: tuple[str, ...]

    def pattern(self, backbone: str = "backbone") -> str:
        """A regex of all their paths, for a partition."""
        names = [re.escape(module) for module in self.modules]
        return f"{backbone}/{names[0] if len(names) == 1 else '(' + '|'.join(names) + ')'}(/.*)?"


@functools.lru_cache(maxsize=64)
def parameter_blocks(backbone: Backbone) -> tuple[Block, ...]:
    """The blocks of the backbone in forward order, each with a kernel or an embedding.

    A part that no tap is named after ('norm' of a transformer) belongs to the first tap that follows when the network
    is built; vectors alone (a last norm) join the block below them. A backbone cut by `until` has no blocks beyond.
    """
    names = [name for name in backbone.tap_names if backbone.until is None
             or backbone.tap_names.index(name) <= backbone.tap_names.index(backbone.until)]
    found: dict[int, list[str]] = {}
    reached = -1
    matrices: set[str] = set()
    for module, is_matrix in _parts(backbone):
        own = next((i for i, name in enumerate(names) if re.fullmatch(re.escape(name) + r"(_.*)?", module)), None)
        reached = own if own is not None else reached
        found.setdefault(min(reached + (own is None), len(names) - 1), []).append(module)
        matrices.update([module] if is_matrix else [])
    blocks: list[Block] = []
    for number, modules in sorted(found.items()):
        if blocks and not matrices & set(modules):
            blocks[-1] = Block(blocks[-1].tap, (*blocks[-1].modules, *modules))
        else:
            blocks.append(Block(names[number], tuple(modules)))
    return tuple(blocks)


def _parts(backbone: Backbone) -> list[tuple[str, bool]]:
    """(first part of a path, whether a leaf below it has more than one axis) in the order in which they are built."""
    found: list[tuple[str, bool]] = []

    def build(key: jax.Array, example: jax.Array) -> int:
        params = backbone.init({"params": key, "dropout": key}, example, train=False)["params"]
        for name, tree in params.items():
            leaves = flatten(tree).values() if isinstance(tree, dict) else [tree]
            found.append((name, any(leaf.ndim > 1 for leaf in leaves)))
        return 0

    jax.eval_shape(build, jax.random.key(0), backbone.example)
    return found
