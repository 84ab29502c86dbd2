"""A model: named backbones and named heads, applied part by part on plain nested dicts of arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.inputs import MISSING, FromTaps
from transfer_jax.core.interception import Edit, tap_edits
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.core.spec import Component, Spec
from transfer_jax.models import build_backbone, build_head
from transfer_jax.models.taps import Backbone, Taps

Variables = dict[str, Any]
MAIN = "backbone"


class ModelSpec(Spec):
    """Backbones and heads by name; a parameter's path starts with the backbone's name, or with `heads/<name>`.

    The number of classes of a task's head is filled in from the data.
    """

    backbones: dict[str, Component]
    heads: dict[str, Component] = {}


class Inserted(Protocol):
    """`around(new)`: a context in which a backbone runs with new leaves, given by the place where they are; `heads`:
    those for which it does so in their own way."""

    @property
    def around(self) -> Callable[[Mapping[str, Mapping[str, jax.Array]]], AbstractContextManager]: ...

    @property
    def heads(self) -> tuple[str, ...]: ...


@dataclasses.dataclass(frozen=True)
class Model:
    """Backbones and heads by name.

    Variables are `{'params': {backbone: ..., 'heads': {head: ...}}, 'batch_stats': {same layout}}`. Taps of the
    backbone called `backbone` have their own names, those of any other backbone are called `name/tap`.

    stochastic_norm: see `layers.normalization.BatchNorm`; None: every channel normalises by its batch in training.
    inserts: what parameters `peft/<name>/<backbone>/...` do to a backbone, by name; those that a tree of parameters
        does not hold do nothing.
    """

    backbones: Mapping[str, Backbone]
    heads: Mapping[str, nn.Module]
    stochastic_norm: float | None = None
    inserts: Mapping[str, Inserted] = dataclasses.field(default_factory=dict)

    def init(self, key: jax.Array, inputs: Mapping[str, Any]) -> Variables:
        """Fresh variables.

        Each part draws from a key folded with a hash of its own name, so adding or removing another part never
        changes it.

        Args:
            key: typed PRNG key.
            inputs: for each backbone a batch, such as images [B, H, W, C], its `ShapeDtypeStruct` (values do not
                matter), or the taps of backbones before it that it reads.
        """
        trees: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
        taps: Taps = {}
        for name in inputs:
            module, image = self._backbone(name), _read(inputs[name], taps, name)
            image = jax.tree.map(_zeros, image)
            found, variables = module.init_with_output(_part_keys(key, name), image, train=False)  # one trace for both
            taps.update(_qualify(name, {tap: _zeros(value) for tap, value in found.items()}))
            for collection, tree in trees.items():
                if collection in variables:
                    tree[name] = variables[collection]
        size = first_image_size(inputs)
        heads = {name: module.init(_part_keys(key, f"heads/{name}"), taps, size, train=False)
                 for name, module in self.heads.items()}
        for collection, tree in trees.items():
            found = {name: variables[collection] for name, variables in heads.items() if collection in variables}
            if found:
                tree["heads"] = found
        return trees

    def taps(self, variables: Variables, inputs: Mapping[str, jax.Array], train: bool = False,
             frozen_norms: frozenset[str] = frozenset(), rngs: Mapping[str, jax.Array] | None = None,
             edits: Mapping[str, Edit] | None = None) -> tuple[Taps, dict[str, Any]]:
        """Runs the backbones named in `inputs`.

        Args:
            variables: see the class.
            inputs: by backbone, in an order in which each comes behind those whose taps it reads (`FromTaps`): float
                images [B, H, W, C], int32 tokens [B, T] ...
            train: whether BatchNorm uses the batch and dropout is on.
            frozen_norms: paths of BatchNorm modules ('backbone/bn1') that use and keep stored statistics all the same.
            rngs: keys by kind, such as {'dropout': key}.
            edits: functions of taps by name; the network goes on with what they return.

        Returns:
            The taps, and the moved statistics `{backbone: ...}` of the backbones that ran (empty unless `train`).
        """
        taps: Taps = {}
        moved: dict[str, Any] = {}
        for name, given in inputs.items():
            image = _read(given, taps, name)
            with tap_edits({tap: edits[qualified(name, tap)] for tap in self._backbone(name).tap_names
                            if qualified(name, tap) in (edits or {})}), self._inserted(variables, name):
                found, stats = self._apply(self._backbone(name), (name,), variables, frozen_norms, rngs, image,
                                           train=train)
            taps.update(_qualify(name, found))
            if stats:
                moved[name] = stats
        return taps, moved

    def heads_apart(self, methods: Iterable[str]) -> frozenset[str]:
        """The heads for which backbones run by themselves, with these methods of `inserts`."""
        return frozenset(head for name in methods if name in self.inserts for head in self.inserts[name].heads)

    def moments(self, variables: Variables, inputs: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Mean and variance of this batch at every BatchNorm of the backbones named in `inputs`, each normalising by
        it: a tree like `batch_stats`, without the backbones that have no such layer. Dropout is off."""
        found, taps = {}, {}
        for name, given in inputs.items():
            image = _read(given, taps, name)
            own = {kind: variables.get(kind, {}).get(name, {}) for kind in ("params", "batch_stats")}
            with self._inserted(variables, name):
                result, written = self._backbone(name).apply(own, image, train=False, mutable=["moments"])
            taps.update(_qualify(name, result))
            found |= {name: written["moments"]} if "moments" in written else {}
        return found

    def head(self, variables: Variables, name: str, taps: Taps | jax.Array,
             image_size: tuple[int, int] | None = None, train: bool = False,
             frozen_norms: frozenset[str] = frozenset(), rngs: Mapping[str, jax.Array] | None = None,
             ) -> tuple[jax.Array, dict[str, Any]]:
        """Output of the head `name` on taps (or on an array in their place), and `{'heads': {name: moved statistics}}`.

        Arguments are those of `taps`; `image_size` (H, W) is what a per-pixel head resizes to.
        """
        if name not in self.heads:
            raise unknown("head", name, self.heads)
        output, stats = self._apply(self.heads[name], ("heads", name), variables, frozen_norms, rngs, taps, image_size,
                                    train=train)
        return output, {"heads": {name: stats}} if stats else {}

    def norm_paths(self, variables: Variables) -> tuple[str, ...]:
        """Paths of all BatchNorm modules ('backbone/stage1/block0/bn1'), in the order of the tree."""
        paths = (path.rpartition("/")[0] for path in flatten(variables.get("batch_stats", {})))
        return tuple(dict.fromkeys(paths))

    def _apply(self, module: nn.Module, path: tuple[str, ...], variables: Variables, frozen_norms: frozenset[str],
               rngs: Mapping[str, jax.Array] | None, *inputs: Any, train: bool) -> tuple[Any, dict[str, Any]]:
        """The module's output on its own part of `variables`, and its statistics (moved; empty unless `train`)."""
        own = {name: _descend(tree, path) for name, tree in variables.items() if name in ("params", "batch_stats")}
        if not train:
            return module.apply(own, *inputs, train=False), {}
        prefix = "/".join(path) + "/"
        frozen = {f"{norm.removeprefix(prefix)}/value": False for norm in frozen_norms if norm.startswith(prefix)}
        if frozen:
            own["live"] = unflatten(frozen)
        if self.stochastic_norm is not None:
            norms = dict.fromkeys(leaf.rpartition("/")[0] for leaf in flatten(own.get("batch_stats", {})))
            own["stochastic"] = unflatten({f"{norm}/rate": self.stochastic_norm for norm in norms})
        output, moved = module.apply(own, *inputs, train=True, mutable=["batch_stats"], rngs=rngs)
        return output, moved.get("batch_stats", {})

    @contextlib.contextmanager
    def _inserted(self, variables: Variables, backbone: str) -> Iterator[None]:
        """A context in which the backbone runs with all that is inserted into it."""
        with contextlib.ExitStack() as stack:
            for name, tree in variables["params"].get("peft", {}).items():
                if name not in self.inserts:
                    raise UserError(f"the parameters peft/{name} belong to adapters or prompts that this model knows "
                                    f"nothing of; use them with the config of the run that made them")
                new: dict[str, dict[str, jax.Array]] = {}
                for path, leaf in flatten(tree.get(backbone, {})).items():
                    place, _, last = path.rpartition("/")
                    new.setdefault(place, {})[last] = leaf
                if new:
                    stack.enter_context(self.inserts[name].around(new))
            yield

    def _backbone(self, name: str) -> Backbone:
        if name not in self.backbones:
            raise unknown("backbone", name, self.backbones)
        return self.backbones[name]


def build_model(spec: ModelSpec, heads: Mapping[str, Component], dtype: Any = jnp.float32) -> Model:
    """The model of `spec` with `heads` (their numbers of classes filled in), computing in `dtype`."""
    return Model({name: build_backbone(part, dtype, f"backbones.{name}") for name, part in spec.backbones.items()},
                 {name: build_head(part, dtype, f"heads.{name}") for name, part in heads.items()})


def first_image_size(inputs: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the first input that is a batch of images or maps [B, H, W, C]; None without one."""
    return next((tuple(x.shape[1:3]) for x in inputs.values() if len(getattr(x, "shape", ())) == 4), None)


def _read(given: Any, taps: Taps, name: str) -> Any:
    """The input of the backbone `name`: what is given, or the taps that it stands for."""
    if not isinstance(given, FromTaps):
        return given
    found = []
    for tap in given.names:
        part, _, own = tap.partition("/")
        if tap != MISSING and qualified(part, own) not in taps:
            raise UserError(f"the backbone {name!r} reads the tap {tap!r}, which no backbone before it gives; there "
                            f"are {', '.join(taps) or 'none'}")
        found.append(None if tap == MISSING else taps[qualified(part, own)])
    return found[0] if given.single else tuple(found)


def _qualify(backbone: str, taps: Taps) -> Taps:
    return {qualified(backbone, tap): value for tap, value in taps.items()}


def qualified(backbone: str, tap: str) -> str:
    """The name of a backbone's tap among those of the model."""
    return tap if backbone == MAIN else f"{backbone}/{tap}"


def _zeros(shape: Any) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype)


def _part_keys(key: jax.Array, path: str) -> dict[str, jax.Array]:
    part = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
    return {"params": part, "dropout": part}


def _descend(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree.get(part, {})
    return tree
