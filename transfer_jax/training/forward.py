"""Running the model's parts on the batches of several streams, and threading BatchNorm statistics through."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten, merge, unflatten
from transfer_jax.data.cached import known_taps
from transfer_jax.models.model import Model, qualified
from transfer_jax.models.taps import Resumed
from transfer_jax.objectives.wiring import Context

Batch = Mapping[str, jax.Array]


def inputs_of(stream: Any, batch: Batch) -> dict[str, jax.Array]:
    """What each backbone reads from a batch of this stream."""
    return {backbone: batch[key] for backbone, key in stream.spec.inputs.items()}


def image_size(stream: Any, batch: Batch) -> tuple[int, int]:
    """Height and width of the stream's (first) input."""
    if known_taps(batch):
        return stream.image_size
    return next(iter(inputs_of(stream, batch).values())).shape[1:3]


def merge_statistics(old: Mapping[str, Any], moved: Mapping[str, Any]) -> dict[str, Any]:
    """The old statistics with those that moved replaced; the structure stays that of the old ones."""
    return merge(old, moved) if moved else dict(old)


def make_context(model: Model, parameters_flat: Mapping[str, jax.Array], batch_stats: Any, names: tuple[str, ...],
                 batches: Mapping[str, Batch], *, streams: Mapping[str, Any], key: jax.Array,
                 frozen_norms: frozenset[str], joint: bool, parameters: Mapping[str, jax.Array],
                 initial: Mapping[str, jax.Array], statistics: Mapping[str, Any], progress: jax.Array,
                 start: tuple[Mapping[str, jax.Array], Any]) -> tuple[Context, Callable[[], Any]]:
    """The context that terms read, and a function that returns the statistics after all that they ran.

    Backbones run once per stream, in the order of `names` (or once in all, if `joint`); heads run when a term asks,
    once per stream. `start` holds the parameters and statistics of the stage's start, for terms that look back.
    """
    variables = {"params": unflatten(parameters_flat), "batch_stats": batch_stats}
    moved: dict[str, Any] = {}

    def current() -> dict[str, Any]:
        return variables | {"batch_stats": merge_statistics(batch_stats, moved)}

    def note(statistics: Mapping[str, Any]) -> None:
        moved.update(merge(moved, statistics))

    def run(name: str, inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
        found, statistics = model.taps(current(), inputs, train=True, frozen_norms=frozen_norms,
                                       rngs={"dropout": _named(key, name)})
        note(statistics)
        return found

    taps = _joint_taps(run, names, batches, streams) if joint and len(names) > 1 else {
        name: _taps(functools.partial(run, name), streams[name], batches[name]) for name in names}
    outputs: dict[tuple[str, str], jax.Array] = {}

    def output(stream: str, head: str) -> jax.Array:
        if (stream, head) not in outputs:
            outputs[stream, head], statistics = model.head(
                current(), head, taps[stream], image_size(streams[stream], batches[stream]), train=True,
                frozen_norms=frozen_norms, rngs={"dropout": _named(key, f"{stream}/{head}")})
            note(statistics)
        return outputs[stream, head]

    def apply(head: str, array: jax.Array) -> jax.Array:
        result, statistics = model.head(current(), head, array, None, train=True, frozen_norms=frozen_norms,
                                        rngs={"dropout": _named(key, head)})
        note(statistics)
        return result

    start_taps, start_output = _start_model(model, start, batches, streams)
    context = Context(batches, taps, output, apply, start_taps, start_output, parameters, initial, statistics,
                      progress, _named(key, "terms"))
    return context, lambda: unflatten({path: jax.lax.stop_gradient(leaf) for path, leaf in flatten(moved).items()})


def _start_model(model: Model, start: tuple[Mapping[str, jax.Array], Any], batches: Mapping[str, Batch],
                 streams: Mapping[str, Any]) -> tuple[Callable, Callable]:
    """`start_taps` and `start_output` of `Context`; nothing runs before a term asks, and nothing twice."""
    variables = {"params": unflatten(start[0]), "batch_stats": start[1]}

    @functools.cache
    def taps(stream: str) -> dict[str, jax.Array]:
        found = _taps(lambda inputs: model.taps(variables, inputs)[0], streams[stream], batches[stream])
        return jax.lax.stop_gradient(found)

    @functools.cache
    def output(stream: str, head: str) -> jax.Array:
        size = image_size(streams[stream], batches[stream])
        return jax.lax.stop_gradient(model.head(variables, head, taps(stream), size)[0])

    return taps, output


def _taps(run: Callable, stream: Any, batch: Batch) -> dict[str, jax.Array]:
    """The taps of a batch: from its inputs, or from the taps that it brings (`CachedStream`)."""
    known = known_taps(batch)
    if not known:
        return run(inputs_of(stream, batch))
    if not stream.goes_on:
        return known
    (backbone,) = stream.spec.inputs
    return {**known, **run({backbone: Resumed(known[qualified(backbone, stream.cut)], stream.cut)})}


def _joint_taps(run: Callable, names: tuple[str, ...], batches: Mapping[str, Batch],
                streams: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """One forward pass over the concatenated streams, cut apart again."""
    inputs = [inputs_of(streams[name], batches[name]) for name in names]
    shapes = {name: tuple((part, value.shape[1:]) for part, value in found.items())
              for name, found in zip(names, inputs, strict=True)}
    if len(set(shapes.values())) > 1:
        raise UserError(f"joint_forward needs streams of equal image shape, found {shapes}; "
                        f"resize them with image_size")
    together = {part: jnp.concatenate([found[part] for found in inputs]) for part in inputs[0]}
    taps = run("joint", together)
    ends = np.cumsum([next(iter(found.values())).shape[0] for found in inputs]).tolist()
    starts = [0, *ends[:-1]]
    return {name: {tap: value[start:end] for tap, value in taps.items()}
            for name, start, end in zip(names, starts, ends, strict=True)}


def _named(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for every named use, whatever else runs."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
