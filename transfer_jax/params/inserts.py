"""Few-parameter methods that add to the forward pass: adapters beside modules, prompts among tokens, prefixes of keys
and values, gaps of domains.

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
from transfer_jax.layers.attention import Attending, SelfAttention, joined_mask
from transfer_jax.layers.window_attention import WindowAttention
from transfer_jax.models.domains import current_head
from transfer_jax.params.domain_shift import check_shift, initial_shift, shift_places, with_shift

PREFIX = "peft/"
Flat = dict[str, jax.Array]
New = Mapping[str, Mapping[str, jax.Array]]  # place within the backbone -> its leaves


@dataclass(frozen=True)
class Outline:
    """What one backbone computes: `modules` path -> shapes (input, output) of those that map one array to one, `taps`
    name -> shape, `attentions` path -> class of the attention layers among the modules."""

    modules: Mapping[str, tuple[Any, Any]]
    taps: Mapping[str, Any]
    attentions: Mapping[str, type]


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

    In a Swin transformer they stand, `deep` only, in front of every window of a block, near to all of its places alike,
    and no tap holds them (Jia et al. 2022, appendix A).

    Args:
      count: tokens of each block.
      spread: standard deviation of the draws. Training does not start at the model: other tokens attend to them.
    """
    if count < 1:
        raise UserError(f"prompts: count = {count} adds nothing; use at least 1")

    def places(outline: Outline, name: str, patterns: tuple[str, ...], where: str) -> list[str]:
        if not any(re.fullmatch(pattern, name) for pattern in patterns):
            return []
        windows = [path.rpartition("/")[0] for path, kind in outline.attentions.items() if kind is WindowAttention]
        if windows and not deep:
            raise UserError(f"{where}: the backbone {name!r} attends in windows, whose tokens change from block to "
                            f"block; use deep=True, with which every block has prompts of its own")
        return windows or _blocks(outline, name, where)[:None if deep else 1]

    def initial(key: jax.Array, outline: Outline, place: str) -> Flat:
        x = outline.taps[place] if place in outline.taps else outline.modules[f"{place}/attention"][0]
        return {"prompts": spread * jax.random.normal(key, (count, x.shape[-1]))}

    return Insert(places, initial, lambda new: (_with_prompts if "block0" in new else _with_window_prompts)(new))


def _blocks(outline: Outline, name: str, where: str) -> list[str]:
    """The blocks of a transformer with one sequence of tokens."""
    missing = {"embeddings", "block0", "tokens"} - set(outline.taps)
    if missing:
        raise UserError(f"{where}: the backbone {name!r} gives no tap {', '.join(sorted(missing))}; prompts are "
                        f"for whole transformers with one sequence of tokens, or with windows")
    return [tap for tap in outline.taps if re.fullmatch(r"block\d+", tap)]


@contextlib.contextmanager
def _with_prompts(new: New) -> Iterator[None]:
    """A context in which a transformer's blocks see prompts in front of their tokens."""
    count = len(new["block0"]["prompts"])

    def put(place: str, x: jax.Array) -> jax.Array:
        return _in_front(new[place]["prompts"], x)

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


def _with_window_prompts(new: New) -> AbstractContextManager:
    """A context in which the windows of a Swin transformer's blocks see prompts in front of their places.

    A block normalises them with its places, lets them take part in each window, and loses what becomes of them.
    """
    normalised: dict[str, jax.Array] = {}  # by block, on the way from its norm to its attention

    def interceptor(call: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        block, _, part = "/".join(context.module.path).rpartition("/")
        if block not in new:
            return call(*arguments, **keywords)
        count = len(new[block]["prompts"])
        if part == "norm1" and context.method_name == "__call__":
            x = arguments[0]
            y = call(_in_front(new[block]["prompts"], x.reshape(x.shape[0], -1, x.shape[-1])), **keywords)
            normalised[block] = y[:, :count]
            return y[:, count:].reshape(x.shape)
        if part == "attention" and context.method_name == "_attend":
            x, *others = arguments  # windows [B, N, places, D]
            front = jnp.broadcast_to(normalised[block][:, None], (*x.shape[:2], count, x.shape[-1]))
            return call(jnp.concatenate([front, x], 2), *others, **keywords)[:, :, count:]
        if part == "attention" and context.method_name == "mix":
            query, key, value, mask, bias, *others = arguments
            around = ((0, 0), (0, 0), (count, 0), (count, 0))
            mask = None if mask is None else jnp.pad(mask, around, constant_values=True)
            return call(query, key, value, mask, jnp.pad(bias, around), *others, **keywords)
        return call(*arguments, **keywords)

    return nn.intercept_methods(interceptor)


def _in_front(tokens: jax.Array, x: jax.Array) -> jax.Array:
    """Tokens [P, ...] in front of the sequences x [B, T, ...] -> [B, P + T, ...]."""
    tokens = tokens.astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)), x], 1)


def prefix(*, count: int = 8, spread: float = 0.02) -> Insert:
    """Learned keys and values in front of those of an attention layer, seen by all of its queries: prefix tuning (Li &
    Liang 2021, section 4), the keys and values learned themselves (as in P-tuning v2, Liu et al. 2022). They have no
    positions, and those of the tokens stay; in windows they are near to all places alike.

    Args:
      count: keys and values of each layer, each [count, D]; head h owns the columns h * D / heads and following.
      spread: standard deviation of the draws. Training does not start at the model: tokens attend to them.
    """
    if count < 1:
        raise UserError(f"prefix: count = {count} adds nothing; use at least 1")

    def initial(key: jax.Array, outline: Outline, place: str) -> Flat:
        draws = spread * jax.random.normal(key, (2, count, outline.modules[place][0].shape[-1]))
        return {"key": draws[0], "value": draws[1]}

    def places(outline: Outline, name: str, patterns: tuple[str, ...], where: str) -> list[str]:
        return [module for module in _modules(outline, name, patterns, where) if module in outline.attentions]

    return Insert(places, initial, _with_prefix)


def _with_prefix(new: New) -> AbstractContextManager:
    """A context in which attention layers see keys and values in front of their own."""
    def interceptor(call: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        place = "/".join(context.module.path)
        if place not in new or context.method_name != "mix" or not isinstance(context.module, Attending):
            return call(*arguments, **keywords)
        query, key, value, mask, bias, causal, drop = arguments
        keys, count = key.shape[1], len(new[place]["key"])

        def longer(array: jax.Array | None, fill: bool | float) -> jax.Array | None:
            if array is None:
                return None
            array = jnp.broadcast_to(array, (*array.shape[:-1], keys))
            return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(count, 0)], constant_values=fill)

        mask, bias = longer(joined_mask(mask, causal, query.shape[1], keys), True), longer(bias, 0.0)
        key, value = (_in_front(new[place][name].reshape(-1, *own.shape[2:]), own)
                      for name, own in (("key", key), ("value", value)))
        return call(query, key, value, mask, bias, False, drop)

    return nn.intercept_methods(interceptor)


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


INSERTS: dict[str, Callable[..., Insert]] = {"adapter": adapter, "prompts": prompts, "prefix": prefix,
                                             "domain_shift": domain_shift}


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
            of_kind = {"domain_shift": "taps", "prefix": "attentions"}.get(spec.kind, "modules")
            known = [f"{name}/{place}" for name, outline in outlines.items() for place in getattr(outline, of_kind)]
            close = list(outlines) if spec.kind == "prompts" else nearest(pattern, known) or known[:3] or ['none']
            raise UserError(f"{where}: {pattern!r} matches nothing; nearest: {', '.join(close)}")


def outline_of(backbone: nn.Module, example: Any) -> Outline:
    """The outline of a backbone for one input (a `ShapeDtypeStruct`, or a mapping of them), found by tracing it."""
    modules: dict[str, tuple[Any, Any]] = {}
    attentions: dict[str, type] = {}

    def shape(array: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    def interceptor(call: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        y = call(*arguments, **keywords)
        arrays = all(isinstance(value, jax.Array) for value in (*arguments[:1], y))
        if context.method_name == "__call__" and context.module.path and arguments and arrays:
            modules["/".join(context.module.path)] = shape(arguments[0]), shape(y)
            if isinstance(context.module, Attending):
                attentions["/".join(context.module.path)] = type(context.module)
        return y

    def run(x: Any) -> Any:
        with nn.intercept_methods(interceptor):
            return backbone.init_with_output(jax.random.key(0), x)[0]

    taps = jax.eval_shape(run, example)
    return Outline(modules, taps, attentions)


def _modules(outline: Outline, name: str, patterns: tuple[str, ...], where: str) -> list[str]:
    del where
    return [module for module in outline.modules
            if any(re.fullmatch(pattern, f"{name}/{module}") for pattern in patterns)]
