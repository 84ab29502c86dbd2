"""Few-parameter methods that add to the forward pass: adapters beside modules, prompts among tokens, gaps of domains.

Unlike the methods of `peft.py` they cannot be worked into the leaves of the plain model, so their leaves stay:
`peft/<name>/<backbone>/<place>/<leaf>`, a place being a module, and a model that finds them runs with them. Networks
know nothing of it: a module's call is intercepted, a tap is edited on its way. With `heads` each of these has a set of
its own, at `<place>/<head>`, with which the network runs for it alone.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError, nearest
from transfer_jax.core.interception import tap_edits
from transfer_jax.core.spec import bind
from transfer_jax.layers.attention import SelfAttention
from transfer_jax.models.domains import current_head
from transfer_jax.params.domain_shift import check_shift, initial_shift, shift_places, with_shift

PREFIX = "peft/"
Flat = dict[str, jax.Array]
New = Mapping[str, Mapping[str, jax.Array]]  # place within the backbone -> its leaves


@dataclass(frozen=True)
class Outline:
    """What one backbone computes: `modules` path -> shapes (input, output) of those that map one array to one, `taps`
    name -> shape."""

    modules: Mapping[str, tuple[Any, Any]]
    taps: Mapping[str, Any]


@dataclass(frozen=True)
class Insert:
    """A bound method.

    `places(outline, backbone, patterns, where)`: the places of a backbone that the regexes of whole paths match;
    `initial(key, outline, place)`: the new leaves there; `around(new)`: a context in which the backbone runs with them.
    `heads`: those that have sets of their own; (): one set for all.
    """

    places: Callable[[Outline, str, tuple[str, ...], str], list[str]]
    initial: Callable[[jax.Array, Outline, str], Flat]
    around: Callable[[New], AbstractContextManager]
    heads: tuple[str, ...] = ()


def adapter(*, width: int = 64, placement: Literal["serial", "parallel"] = "serial",
            activation: Literal["gelu", "relu"] = "gelu", scale: float = 1.0) -> Insert:
    """y + s U f(D y) behind a module with the output y (Houlsby et al. 2019, section 2.1: behind attention and
    perceptron of every block), or y + s U f(D x) beside it with its input x (parallel; He et al. 2022, table 1).

    D [in, width] is uniform in +-1/sqrt(in), U [width, out] and both biases are zero: training starts at the model.

    Args:
      width: of the bottleneck.
      placement: 'serial' or 'parallel'.
      activation: f.
      scale: s (4 for parallel adapters in the paper).
    """
    if width < 1 or placement not in ("serial", "parallel") or activation not in ("gelu", "relu"):
        raise UserError(f"adapter: width = {width}, placement = {placement!r}, activation = {activation!r} do not fit; "
                        f"use a width above 0, 'serial' or 'parallel', 'gelu' or 'relu'")

    def initial(key: jax.Array, outline: Outline, place: str) -> Flat:
        inputs, output = outline.modules[place]
        size = (inputs if placement == "parallel" else output).shape[-1]
        bound = size ** -0.5
        return {"down": jax.random.uniform(key, (size, width), jnp.float32, -bound, bound),
                "down_bias": jnp.zeros(width), "up": jnp.zeros((width, output.shape[-1])),
                "up_bias": jnp.zeros(output.shape[-1])}

    def add(new: Mapping[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        down, down_bias, up, up_bias = (new[name].astype(y.dtype) for name in ("down", "down_bias", "up", "up_bias"))
        hidden = (x if placement == "parallel" else y) @ down + down_bias
        hidden = nn.relu(hidden) if activation == "relu" else nn.gelu(hidden, approximate=False)
        return y + scale * (hidden @ up + up_bias)

    def around(new: New) -> AbstractContextManager:
        def interceptor(call: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
            y = call(*arguments, **keywords)
            place = "/".join(context.module.path) if context.method_name == "__call__" else None
            return add(new[place], arguments[0], y) if place in new else y

        return nn.intercept_methods(interceptor)

    return Insert(_modules, initial, around)


def prompts(*, count: int = 8, deep: bool = False, spread: float = 0.02) -> Insert:
    """Learned tokens in front of those of a transformer: visual prompt tuning (Jia et al. 2022, eq. 4 and 5; `deep`:
    eq. 6 and 7, new ones for every block), for texts prompt tuning (Lester et al. 2021) and, deep, P-tuning v2 (Liu et
    al. 2022). They have no positions and are dropped before tokens are pooled; the taps of blocks hold them.

    Args:
      count: tokens of each block.
      spread: standard deviation of the draws. Training does not start at the model: other tokens attend to them.
    """
    if count < 1:
        raise UserError(f"prompts: count = {count} adds nothing; use at least 1")

    def places(outline: Outline, name: str, patterns: tuple[str, ...], where: str) -> list[str]:
        if not any(re.fullmatch(pattern, name) for pattern in patterns):
            return []
        missing = {"embeddings", "block0", "tokens"} - set(outline.taps)
        if missing:
            raise UserError(f"{where}: the backbone {name!r} gives no tap {', '.join(sorted(missing))}; prompts are "
                            f"for whole transformers with one sequence of tokens")
        blocks = [tap for tap in outline.taps if re.fullmatch(r"block\d+", tap)]
        return blocks if deep else blocks[:1]

    def initial(key: jax.Array, outline: Outline, place: str) -> Flat:
        return {"prompts": spread * jax.random.normal(key, (count, outline.taps[place].shape[-1]))}

    return Insert(places, initial, _with_prompts)


@contextlib.contextmanager
def _with_prompts(new: New) -> Iterator[None]:
    """A context in which a transformer's blocks see prompts in front of their tokens."""
    count = len(new["block0"]["prompts"])

    def put(place: str, x: jax.Array) -> jax.Array:
        tokens = new[place]["prompts"].astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)), x], 1)

    edits = {"embeddings": lambda x: put("block0", x), "tokens": lambda x: x[:, count:]}
    for place in new:
        number = int(place.removeprefix("block"))
        if number:  # what a block put out for the prompts gives way to those of the next one
            edits[f"block{number - 1}"] = lambda x, place=place: put(place, x[:, count:])

    def interceptor(call: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        if not isinstance(context.module, SelfAttention) or context.method_name != "__call__":
            return call(*arguments, **keywords)
        x, train, mask, *others = (*arguments, *(None,) * (3 - len(arguments)))
        mask = keywords.pop("mask", mask)
        if mask is not None and mask.shape[-1] == x.shape[1] - count:  # prompts are seen by all
            mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], count), bool), mask], -1)
        return call(x, bool(train), mask, *others, **keywords)

    with tap_edits(edits), nn.intercept_methods(interceptor):
        yield


def domain_shift(*, domains: tuple[str, ...], scale: bool = True, spread: Mapping[str, float] | None = None,
                 shared: bool = False) -> Insert:
    """x (1 + scale) + shift with vectors of each domain at the taps whose paths `targets` match ('backbone/pooled').

    Scales and shifts are zero at first, so that training starts at the model, but for shifts of domains with a spread.
    A gap in the last tap before a linear head, with one batch normalisation in front of it, is the domain-specific
    affine part of Chang et al. (2019, section 3.2).

    Args:
      domains: as the streams name them; the last is meant where a model is used without saying which.
      scale: whether there is a factor beside the shift.
      spread: domain -> standard deviation of the draws of its shifts.
      shared: one gap for all taps together, which then have one width.
    """
    check_shift(domains, spread or {})

    def initial(key: jax.Array, outline: Outline, place: str) -> Flat:
        gap, _, domain = place.rpartition("/")
        return initial_shift(key, outline.taps[gap.split("+")[0]].shape[-1], (spread or {}).get(domain, 0.0), scale)

    return Insert(lambda outline, name, patterns, where: shift_places(outline.taps, name, patterns, domains, shared,
                                                                      where),
                  initial, lambda new: with_shift(new, domains))


INSERTS: dict[str, Callable[..., Insert]] = {"adapter": adapter, "prompts": prompts, "domain_shift": domain_shift}


def make_insert(spec: Any, where: str) -> Insert:
    """The bound method of a `PeftSpec` whose kind is one of `INSERTS`."""
    insert = bind(INSERTS, spec, "method", where)()
    return _for_each(insert, tuple(spec.heads)) if spec.heads else insert


def _for_each(insert: Insert, heads: tuple[str, ...]) -> Insert:
    """The method with a set of leaves for each head, as residual adapters have for each domain (Rebuffi et al. 2017).
    A head that is not among them runs the network without any."""
    def places(*given: Any) -> list[str]:
        return [f"{place}/{head}" for place in insert.places(*given) for head in heads]

    def initial(key: jax.Array, outline: Outline, place: str) -> Flat:
        return insert.initial(key, outline, place.rpartition("/")[0])

    def around(new: New) -> AbstractContextManager:
        head = current_head()
        own = {place.rpartition("/")[0]: leaves for place, leaves in new.items() if place.rpartition("/")[2] == head}
        return insert.around(own) if own else contextlib.nullcontext()

    return Insert(places, initial, around, heads)


def head_of(path: str, inserts: Mapping[str, Any]) -> str | None:
    """The head that alone runs with the leaf at this path; None for a leaf of all. `inserts`: methods by name."""
    parts = path.split("/")
    own = path.startswith(PREFIX) and parts[1] in inserts and inserts[parts[1]].heads
    return parts[-2] if own else None


def inserted_leaves(name: str, spec: Any, outlines: Mapping[str, Outline], seed: jax.Array, where: str) -> Flat:
    """The leaves `peft/<name>/<backbone>/<place>/<leaf>` that a method adds, of one seed (uint32 scalar).

    Args:
      spec: a `PeftSpec` of one of `INSERTS`.
      outlines: of the backbones by name.
    """
    insert = make_insert(spec, where)
    _check_targets(insert, spec, outlines, f"{where}.targets")
    added: Flat = {}
    for backbone, outline in outlines.items():
        for place in insert.places(outline, backbone, spec.targets, f"{where}.targets"):
            key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(f"{name}/{backbone}/{place}".encode())))
            for leaf, value in insert.initial(key, outline, place).items():
                added[f"{PREFIX}{name}/{backbone}/{place}/{leaf}"] = value
    return added


def _check_targets(insert: Insert, spec: Any, outlines: Mapping[str, Outline], where: str) -> None:
    for pattern in spec.targets:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}") from error
        if not any(insert.places(outline, backbone, (pattern,), where) for backbone, outline in outlines.items()):
            known = [f"{backbone}/{module}" for backbone, outline in outlines.items() for module in outline.modules]
            known = [f"{name}/{tap}" for name, outline in outlines.items() for tap in outline.taps] if (
                spec.kind == "domain_shift") else known
            close = list(outlines) if spec.kind == "prompts" else nearest(pattern, known) or known[:3]
            raise UserError(f"{where}: {pattern!r} matches nothing; nearest: {', '.join(close)}")


def outline_of(backbone: nn.Module, example: Any) -> Outline:
    """The outline of a backbone for one input (a `ShapeDtypeStruct`, or a mapping of them), found by tracing it."""
    modules: dict[str, tuple[Any, Any]] = {}

    def shape(array: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    def interceptor(call: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        y = call(*arguments, **keywords)
        arrays = all(isinstance(value, jax.Array) for value in (*arguments[:1], y))
        if context.method_name == "__call__" and context.module.path and arguments and arrays:
            modules["/".join(context.module.path)] = shape(arguments[0]), shape(y)
        return y

    def run(x: Any) -> Any:
        with nn.intercept_methods(interceptor):
            return backbone.init_with_output(jax.random.key(0), x)[0]

    return Outline(modules, jax.eval_shape(run, example))


def _modules(outline: Outline, name: str, patterns: tuple[str, ...], where: str) -> list[str]:
    del where
    return [module for module in outline.modules
            if any(re.fullmatch(pattern, f"{name}/{module}") for pattern in patterns)]
