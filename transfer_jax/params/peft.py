"""Parameter-efficient fine-tuning: a few new leaves change what the layers of a frozen model compute.

A method re-parameterises a module: from the module's own leaves ('kernel', 'bias', 'scale') and its new ones it gives
the leaves that the layer runs with. So models know nothing of it, the same function trains and merges, and dense,
convolution and norm layers are the same to it. New leaves live under `peft/<name>/<module path>/`, where partitions
find them; the gradient of a changed kernel is computed whole and projected, but only new leaves have optimizer state.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError, nearest
from transfer_jax.core.spec import Component, bind, lookup
from transfer_jax.params.inserts import INSERTS, PREFIX, Outline, inserted_leaves

Leaves = Mapping[str, Any]
Flat = dict[str, jax.Array]


class PeftSpec(Component):
    """A method of `PEFT` or `INSERTS` with its arguments, and `targets`: regexes of whole module paths that it changes,
    such as 'backbone/.*/(query|value)' (of `prompts`: of names of backbones). `source`: a folder of low-rank leaves to
    start from, such as `model/peft/<name>` of a run. `heads`: of adapters and prompts, those with a set each."""

    targets: tuple[str, ...]
    source: str | None = None
    heads: tuple[str, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether its leaves cannot be worked into the plain model: see `inserts.py`."""
        return self.kind in INSERTS


@dataclass(frozen=True)
class Method:
    """`initial(key, leaves)` gives a module's new leaves, `apply(leaves, new)` those of its leaves that change."""

    needs: str
    initial: Callable[[jax.Array, Leaves], Flat]
    apply: Callable[[Leaves, Leaves], Flat]


def lora(*, rank: int = 8, alpha: float = 8.0, scaling: Literal["rank", "root"] = "rank") -> Method:
    """W + s A B (Hu et al. 2022, eq. 3): A [..., in, r] uniform in +-1/sqrt(fan in), B [r, out] zero, so that training
    starts at W. For a convolution A has its window, B is 1x1.

    Args:
      rank: r.
      alpha, scaling: s = alpha / r, or alpha / sqrt(r) with 'root' (rsLoRA; Kalajdzievski 2023).
    """
    scale = _scale(rank, alpha, scaling)
    return Method("kernel", functools.partial(_low_rank, rank),
                  lambda leaves, new: {"kernel": leaves["kernel"] + scale * _product(new)})


def dora(*, rank: int = 8, alpha: float = 8.0, scaling: Literal["rank", "root"] = "rank") -> Method:
    """m V / |V| with V = W + s A B and a learned length m for every output (Liu et al. 2024, eq. 5), |V| held constant
    for the gradient (their eq. 11). Starts at W: m is |W|."""
    scale = _scale(rank, alpha, scaling)

    def initial(key: jax.Array, leaves: Leaves) -> Flat:
        return {**_low_rank(rank, key, leaves), "length": _lengths(leaves["kernel"])}

    def apply(leaves: Leaves, new: Leaves) -> Flat:
        direction = leaves["kernel"] + scale * _product(new)
        return {"kernel": direction * (new["length"] / jax.lax.stop_gradient(_lengths(direction)))}

    return Method("kernel", initial, apply)


def ia3(*, side: Literal["output", "input"] = "output") -> Method:
    """Learned factors, 1 at the start, on a layer's outputs, or on its inputs (Liu et al. 2022, section 3.3: outputs of
    keys and values, inputs of the second feed-forward layer)."""
    if side not in ("output", "input"):
        raise UserError(f"ia3: side = {side!r} does not fit; use 'output' or 'input'")

    def initial(key: jax.Array, leaves: Leaves) -> Flat:
        kernel = leaves["kernel"]
        return {"factor": jnp.ones(kernel.shape[-1 if side == "output" else -2], kernel.dtype)}

    def apply(leaves: Leaves, new: Leaves) -> Flat:
        if side == "input":
            return {"kernel": leaves["kernel"] * new["factor"][:, None]}
        return {name: leaves[name] * new["factor"] for name in ("kernel", "bias") if name in leaves}

    return Method("kernel", initial, apply)


def ssf(*, spread: float = 0.0) -> Method:
    """factor * y + shift behind a dense, convolution or norm layer (Lian et al. 2022, eq. 4), starting at 1 and 0.

    Args:
      spread: standard deviation of the draws around 1 and 0 (0.02 in the authors' experiments).
    """
    def initial(key: jax.Array, leaves: Leaves) -> Flat:
        shape = leaves["bias"].shape
        draws = spread * jax.random.normal(key, (2, *shape), leaves["bias"].dtype)
        return {"factor": 1 + draws[0], "shift": draws[1]}

    def apply(leaves: Leaves, new: Leaves) -> Flat:
        name = "kernel" if "kernel" in leaves else "scale"
        return {name: leaves[name] * new["factor"], "bias": leaves["bias"] * new["factor"] + new["shift"]}

    return Method("bias", initial, apply)


PEFT = {"lora": lora, "dora": dora, "ia3": ia3, "ssf": ssf}


def targets(spec: PeftSpec, paths: Any, where: str) -> list[str]:
    """The module paths that the spec's regexes match, in the order of the tree.

    Raises:
      UserError: for a regex that matches no module, or a module without the leaf that the method changes.
    """
    method = bind(PEFT, spec, "method", where)()
    modules = list(dict.fromkeys(path.rpartition("/")[0] for path in paths if not path.startswith(PREFIX)))
    found = []
    for pattern in spec.targets:
        matched = [module for module in modules if re.fullmatch(pattern, module)]
        if not matched:
            close = nearest(pattern, modules) or modules[:3]
            raise UserError(f"{where}.targets: {pattern!r} matches no module; nearest: {', '.join(close)}")
        found += [module for module in matched if module not in found]
    for module in found:
        if f"{module}/{method.needs}" not in paths:
            raise UserError(f"{where}.targets: {module!r} has no {method.needs!r}, which {spec.kind} changes; narrow "
                            f"the regex")
    return [module for module in modules if module in found]


def new_leaves(specs: Mapping[str, PeftSpec], params: Leaves, seed: jax.Array, where: str = "peft",
               outlines: Mapping[str, Outline] | None = None) -> Flat:
    """The leaves that the methods add to a model with the leaves `params` (flat), of one seed (uint32 scalar).

    Args:
      outlines: of the backbones by name, for methods that stay (`inserts.py`).
    """
    added: Flat = {}
    current = dict(params)
    for name, spec in specs.items():
        lookup({**PEFT, **INSERTS}, spec.kind, "method", f"{where}.{name}")
        if spec.stays:
            added |= inserted_leaves(name, spec, outlines or {}, seed, f"{where}.{name}")
            continue
        if spec.heads:
            raise UserError(f"{where}.{name}.heads: {spec.kind} is worked into the one network that all heads read; "
                            f"use {' or '.join(INSERTS)}, or leave it out")
        method = bind(PEFT, spec, "method", f"{where}.{name}")()
        for module in targets(spec, params, f"{where}.{name}"):
            key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(f"{name}/{module}".encode())))
            leaves = _leaves_of(module, current)
            new = method.initial(key, leaves)
            added |= {f"{PREFIX}{name}/{module}/{leaf}": value for leaf, value in new.items()}
            current |= {f"{module}/{leaf}": value for leaf, value in method.apply(leaves, new).items()}
    return added


def merged(specs: Mapping[str, PeftSpec], params: Leaves) -> Flat:
    """The parameters that the model runs with: those of `params` with the new leaves worked in and gone, except those
    of methods that stay."""
    changing = {name: spec for name, spec in specs.items() if not spec.stays}
    gone = tuple(f"{PREFIX}{name}/" for name in changing)
    current = {path: leaf for path, leaf in params.items() if not path.startswith(gone)}
    for name, spec in changing.items():
        method = bind(PEFT, spec, "method", f"peft.{name}")()
        front = f"{PREFIX}{name}/"
        for module in dict.fromkeys(path[len(front):].rpartition("/")[0] for path in params if path.startswith(front)):
            changed = method.apply(_leaves_of(module, current), _leaves_of(front + module, params))
            current |= {f"{module}/{leaf}": value for leaf, value in changed.items()}
    return current


def _leaves_of(module: str, params: Leaves) -> Flat:
    return {path.rpartition("/")[2]: leaf for path, leaf in params.items() if path.rpartition("/")[0] == module}


def _scale(rank: int, alpha: float, scaling: str) -> float:
    if rank < 1 or scaling not in ("rank", "root"):
        raise UserError(f"rank = {rank}, scaling = {scaling!r} do not fit; use a rank above 0 and 'rank' or 'root'")
    return alpha / (rank if scaling == "rank" else math.sqrt(rank))


def _low_rank(rank: int, key: jax.Array, leaves: Leaves) -> Flat:
    kernel = leaves["kernel"]
    bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
    return {"a": jax.random.uniform(key, (*kernel.shape[:-1], rank), kernel.dtype, -bound, bound),
            "b": jnp.zeros((rank, kernel.shape[-1]), kernel.dtype)}


def _product(new: Leaves) -> jax.Array:
    return jnp.tensordot(new["a"], new["b"], 1)


def _lengths(kernel: jax.Array) -> jax.Array:
    """The length of the weights of every output, [out]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=range(kernel.ndim - 1)))
