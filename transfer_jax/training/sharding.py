"""Which device holds which part of a parameter: ordered regex rules give every parameter a named tactic.

`replicate` puts a parameter whole on every device. `fsdp` splits it over the mesh axis `fsdp` (Rajbhandari et al.
2020, "ZeRO", stage 3): the compiler gathers a layer where it is used and lets it go again. `tensor(d)` splits
dimension d over the axis `model` (Shoeybi et al. 2019, "Megatron-LM") and, what is left, over `fsdp`. Optimizer state
and averages of a parameter lie as the parameter does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transfer_jax.core.errors import UserError, nearest
from transfer_jax.core.paths import flatten

Rules = Sequence[tuple[str, str]]
LEAST = 4096  # elements of a seed; splitting a smaller parameter saves less than its collective operations cost
TACTICS = ("replicate", "fsdp", "tensor(DIMENSION)")

# Tensor parallelism of all our transformers: columns of the layers that open a branch, rows of those that close it, so
# that a branch needs one sum over the devices. Heads are contiguous columns: a device holds whole heads.
TRANSFORMERS: Rules = (
    (r".*/(query|key|value|fc1)/(kernel|bias)", "tensor(-1)"),
    (r".*/(attention/out|mlp/fc2)/kernel", "tensor(-2)"),
    (r".*", "fsdp"),
)


@dataclass(frozen=True)
class Layout:
    """The mesh and the rules of a run.

    Attributes:
      rules, frozen_rules: (regex, tactic) pairs for parameters that train and for those that do not; the first regex
        that matches a whole path decides. None: the shipped rules, where a dimension that the mesh does not divide
        falls back to `fsdp`.
    """

    mesh: Mesh
    rules: Rules | None = None
    frozen_rules: Rules | None = None

    def check(self, paths: Sequence[str]) -> None:
        """Raises UserError for a rule that matches none of the paths, an unknown tactic, or a path without a rule."""
        for name, rules in (("sharding", self.rules), ("frozen_sharding", self.frozen_rules)):
            if rules is not None:
                _check_rules(rules, paths, f"config.{name}")

    def params(self, shapes: Mapping[str, Any], frozen: bool = False) -> dict[str, NamedSharding]:
        """Shardings of parameters [S, ...] by path."""
        rules = self.rules if not frozen or self.frozen_rules is None else self.frozen_rules
        return {path: NamedSharding(self.mesh, self._spec(rules, path, tuple(leaf.shape[1:])))
                for path, leaf in shapes.items()}

    def of(self, tree: Any, params: Mapping[str, Any], frozen: Sequence[str] = ()) -> Any:
        """Shardings of a tree of arrays [S, ...], such as `State` or `Constants`: a leaf that lies under the path of a
        parameter and has its shape is split like it, any other is replicated."""
        frozen = set(frozen)
        known = (self.params({path: leaf for path, leaf in params.items() if path not in frozen})
                 | self.params({path: leaf for path, leaf in params.items() if path in frozen}, frozen=True))
        whole = NamedSharding(self.mesh, P())

        def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
            for key in keys:
                path = getattr(key, "key", None)
                path = path.removeprefix("params/") if isinstance(path, str) else None
                if path in known and tuple(params[path].shape) == tuple(leaf.shape):
                    return known[path]
            return whole

        return jax.tree_util.tree_map_with_path(one, tree)

    def variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Shardings of the variables [S, ...] of a linen model: parameters by the rules, all else replicated."""
        by_path = self.params(dict(flatten(variables["params"])))

        def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
            names = [key.key for key in keys]
            return by_path["/".join(names[1:])] if names[0] == "params" else NamedSharding(self.mesh, P())

        return jax.tree_util.tree_map_with_path(one, dict(variables))

    def _spec(self, rules: Rules | None, path: str, shape: tuple[int, ...]) -> P:
        """The spec of [S, *shape]; the axis of the seeds is never split."""
        lenient = rules is None
        tactic = next(tactic for pattern, tactic in (TRANSFORMERS if lenient else rules) if re.fullmatch(pattern, path))
        split: list[str | None] = [None] * len(shape)
        if tactic == "replicate":
            return P()
        if tactic != "fsdp" and self.mesh.shape["model"] > 1:
            dimension = self._tensor_dimension(tactic, path, shape, lenient)
            if dimension is not None:
                split[dimension] = "model"
        self._split_fsdp(split, shape)
        return P(None, *split) if any(split) else P()

    def _tensor_dimension(self, tactic: str, path: str, shape: tuple[int, ...], lenient: bool) -> int | None:
        dimension = int(tactic[len("tensor("):-1])
        size = self.mesh.shape["model"]
        if -len(shape) <= dimension < len(shape) and shape[dimension] % size == 0:
            return dimension % len(shape)
        if lenient:
            return None
        raise UserError(f"config.sharding: {tactic} does not fit {path!r} of shape {shape} on a mesh with model="
                        f"{size}; that dimension must exist and be divisible by it")

    def _split_fsdp(self, split: list[str | None], shape: tuple[int, ...]) -> None:
        size = self.mesh.shape["fsdp"]
        free = [d for d, axis in enumerate(split) if axis is None and shape[d] % size == 0]
        if size > 1 and free and math.prod(shape) >= LEAST:
            split[max(free, key=lambda d: shape[d])] = "fsdp"


def _check_rules(rules: Rules, paths: Sequence[str], where: str) -> None:
    left = set(paths)
    for pattern, tactic in rules:
        if tactic not in ("replicate", "fsdp") and not re.fullmatch(r"tensor\(-?\d+\)", tactic):
            raise UserError(f"{where}: unknown tactic {tactic!r}; there are {', '.join(TACTICS)}")
        try:
            found = {path for path in paths if re.fullmatch(pattern, path)}
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}") from error
        if not found & left:
            what = "never applies, earlier rules cover all that it matches" if found else "matches no parameter"
            raise UserError(f"{where}: rule {pattern!r} -> {tactic!r} {what}; nearest paths: "
                            f"{', '.join(nearest(pattern, paths) or list(paths)[:3])}")
        left -= found
    if left:
        raise UserError(f"{where}: no rule covers {len(left)} parameters ({', '.join(sorted(left)[:3])}"
                        f"{', ...' if len(left) > 3 else ''}); add a last rule, for example ('.*', 'fsdp')")
