"""Running the model's parts on the batches of several streams, and threading BatchNorm statistics through."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.inputs import FromTaps, from_taps, read_inputs
from transfer_jax.core.paths import flatten, merge, unflatten
from transfer_jax.data.cached import known_taps
from transfer_jax.layers.gradient import scale_gradient
from transfer_jax.models.domains import moved_statistics, reading, statistics_of
from transfer_jax.models.model import Model, first_image_size, qualified
from transfer_jax.models.taps import Resumed
from transfer_jax.objectives.wiring import Context
from transfer_jax.params.inserts import PREFIX

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Passage:
    """How the batches of a stream go through the model.

    domain: of the stream, for what belongs to domains.
    statistics: the domain whose BatchNorm statistics it uses and moves; None: the main ones.
    stored: on stored statistics, which stay as they are.
    gradient_scale: of every gradient that its batches send to parameters.
    """

    domain: str | None = None
    statistics: str | None = None
    stored: bool = False
    gradient_scale: float = 1.0


def inputs_of(stream: Any, batch: Batch) -> dict[str, Any]:
    """What each backbone reads from a batch of this stream."""
    return read_inputs(stream.spec.inputs, batch)


def image_size(stream: Any, batch: Batch) -> tuple[int, int] | None:
    """Height and width of the stream's first input that is an image; None without one."""
    return stream.image_size if known_taps(batch) else first_image_size(inputs_of(stream, batch))


def merge_statistics(old: Mapping[str, Any], moved: Mapping[str, Any]) -> dict[str, Any]:
    """The old statistics with those that moved replaced; the structure stays that of the old ones."""
    return merge(old, moved) if moved else dict(old)


def make_context(model: Model, parameters_flat: Mapping[str, jax.Array], batch_stats: Any, names: tuple[str, ...],
                 batches: Mapping[str, Batch], *, streams: Mapping[str, Any], passages: Mapping[str, Passage],
                 key: jax.Array, frozen_norms: frozenset[str], all_norms: tuple[str, ...], joint: bool,
                 parameters: Mapping[str, jax.Array], initial: Mapping[str, jax.Array], statistics: Mapping[str, Any],
                 progress: jax.Array, start: tuple[Mapping[str, jax.Array], Any],
                 averaged: tuple[Mapping[str, jax.Array], Any] | None, carried: Mapping[str, Any],
                 shared: Mapping[str, str], mixing: Callable[[Batch, jax.Array], Mapping[str, Any]] | None = None,
                 edits: Callable[[str], Mapping[str, Any]] | None = None) -> tuple[Context, Callable[[], Any]]:
    """The context that terms read, and a function that returns the statistics after all that they ran.

    Backbones run once per stream, in the order of `names` (or once in all, if `joint`); heads run when a term asks,
    once per stream. Where heads have adapters of their own, backbones run when a term asks, for each of these heads,
    after the first one from their tap in `shared` on. `start` holds the parameters and statistics of the stage's start,
    for terms that look back, `averaged` those of the moving average. `mixing` gives functions of taps that mix the
    examples of a batch, `edits` others, of a stream's taps, which act after them.
    """
    moved: dict[str, Any] = {}

    def variables(passage: Passage) -> dict[str, Any]:
        scale = passage.gradient_scale
        leaves = parameters_flat if scale == 1 else {path: scale_gradient(leaf, scale)
                                                     for path, leaf in parameters_flat.items()}
        return {"params": unflatten(leaves),
                "batch_stats": statistics_of(merge_statistics(batch_stats, moved), passage.statistics)}

    def note(found: Mapping[str, Any], passage: Passage) -> None:
        moved.update(merge(moved, moved_statistics(found, passage.statistics)))

    def settings(passage: Passage, name: str) -> dict[str, Any]:
        return {"train": True, "frozen_norms": frozenset(all_norms) if passage.stored else frozen_norms,
                "rngs": {"dropout": _named(key, name)}}

    def run(name: str, passage: Passage, batch: Batch, inputs: Mapping[str, Any],
            head: str | None = None) -> dict[str, jax.Array]:
        mixed = mixing(batch, _named(key, f"mixing/{name}")) if mixing else {}
        with reading(passage.domain, head):
            found, statistics = model.taps(variables(passage), inputs, edits=_one_after_the_other(
                mixed, edits(name) if edits else {}), **settings(passage, name))
        note(statistics, passage)
        return found

    apart = _heads_apart(model, parameters_flat)
    taps: dict[str, dict[str | None, dict[str, jax.Array]]] = {name: {} for name in names}
    if joint and len(names) > 1:
        found = _joint_taps(lambda inputs: run("joint", Passage(), {}, inputs), names, batches, streams)
        taps = {name: {None: own} for name, own in found.items()}

    def taps_of(stream: str, head: str | None) -> dict[str, jax.Array]:
        found, head = taps[stream], head if head in apart else None
        if head not in found:
            passes = functools.partial(run, stream, passages[stream], batches[stream], head=head)
            first = next(iter(found.values()), None)
            found[head] = _taps(passes, streams[stream], batches[stream]) if first is None else _from_shared(
                passes, inputs_of(streams[stream], batches[stream]), first, shared)
        return found[head]

    for name in names if not apart else ():
        taps_of(name, None)
    outputs: dict[tuple[str, str], jax.Array] = {}

    def output(stream: str, head: str) -> jax.Array:
        if (stream, head) not in outputs:
            passage = passages[stream]
            outputs[stream, head], statistics = model.head(
                variables(passage), head, taps_of(stream, head), image_size(streams[stream], batches[stream]),
                **settings(passage, f"{stream}/{head}"))
            note(statistics, passage)
        return outputs[stream, head]

    def apply(head: str, array: jax.Array) -> jax.Array:
        result, statistics = model.head(variables(Passage()), head, array, None, **settings(Passage(), head))
        note(statistics, Passage())
        return result

    def only_input(stream: str) -> str:
        inputs = streams[stream].spec.inputs
        fed = [part for part, source in inputs.items() if from_taps(source) is None]
        if len(fed) > 1:
            raise UserError(f"a term changes the inputs of stream {stream!r}, which feeds {' and '.join(fed)}; it "
                            f"works with one")
        return fed[0]

    def again(stream: str, head: str, inputs: jax.Array) -> jax.Array:
        """The head's output for other inputs in place of the stream's; statistics stay."""
        backbone, passage = only_input(stream), passages[stream]
        with reading(passage.domain, head):
            found, _ = model.taps(variables(passage), {**inputs_of(streams[stream], batches[stream]), backbone: inputs},
                                  **settings(passage, stream))
        return model.head(variables(passage), head, found, image_size(streams[stream], batches[stream]),
                          **settings(passage, f"{stream}/{head}"))[0]

    start_taps, start_output = _other_model(model, start, batches, streams, passages)
    teacher = _other_model(model, averaged, batches, streams, passages)[1] if averaged else None
    context = Context(batches=batches, taps=taps_of, output=output, apply=apply, again=again, start_taps=start_taps,
                      inputs=lambda stream: inputs_of(streams[stream], batches[stream])[only_input(stream)],
                      start_output=start_output, teacher_output=teacher, parameters=parameters,
                      initial_parameters=initial, statistics=statistics, carried=carried, progress=progress,
                      key=_named(key, "terms"))
    return context, lambda: unflatten({path: jax.lax.stop_gradient(leaf) for path, leaf in flatten(moved).items()})


def _one_after_the_other(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    both = {tap: functools.partial(lambda a, b, x: b(a(x)), first[tap], second[tap]) for tap in first if tap in second}
    return {**first, **second, **both}


def _other_model(model: Model, variables: tuple[Mapping[str, jax.Array], Any], batches: Mapping[str, Batch],
                 streams: Mapping[str, Any], passages: Mapping[str, Passage]) -> tuple[Callable, Callable]:
    """Taps of a stream, and outputs of a head on it, of a model that no gradient reaches, without dropout and on stored
    statistics. Nothing runs before a term asks, and nothing twice."""
    parameters, batch_stats = unflatten(variables[0]), variables[1]
    apart = _heads_apart(model, variables[0])

    def of(stream: str) -> dict[str, Any]:
        return {"params": parameters, "batch_stats": statistics_of(batch_stats, passages[stream].statistics)}

    @functools.cache
    def run(stream: str, head: str | None) -> dict[str, jax.Array]:
        with reading(passages[stream].domain, head):
            found = _taps(lambda inputs: model.taps(of(stream), inputs)[0], streams[stream], batches[stream])
        return jax.lax.stop_gradient(found)

    def taps(stream: str, head: str | None) -> dict[str, jax.Array]:
        return run(stream, head if head in apart else None)

    @functools.cache
    def output(stream: str, head: str) -> jax.Array:
        size = image_size(streams[stream], batches[stream])
        return jax.lax.stop_gradient(model.head(of(stream), head, taps(stream, head), size)[0])

    return taps, output


def _heads_apart(model: Model, leaves: Mapping[str, jax.Array]) -> frozenset[str]:
    """The heads for which backbones with these leaves run by themselves."""
    return model.heads_apart({path.split("/")[1] for path in leaves if path.startswith(PREFIX)})


def _from_shared(run: Callable, inputs: Mapping[str, Any], first: Mapping[str, jax.Array],
                 shared: Mapping[str, str]) -> dict[str, jax.Array]:
    """The taps of a further pass over a batch, of which `first` are those of another. It goes on behind the tap that
    `shared` names for the one backbone that runs; otherwise it is a whole one."""
    (backbone, *others) = inputs
    if others or backbone not in shared:
        return run(inputs)
    tap = shared[backbone]
    return {**first, **run({backbone: Resumed(first[qualified(backbone, tap)], tap)})}


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
    shapes = {name: tuple((part, value if isinstance(value, FromTaps) else value.shape[1:])
                          for part, value in found.items())
              for name, found in zip(names, inputs, strict=True)}
    if len(set(shapes.values())) > 1:
        raise UserError(f"batch_norm='joint' needs streams of equal image shape, found {shapes}; "
                        f"resize them with image_size")
    taps = run(jax.tree.map(lambda *parts: jnp.concatenate(parts), *inputs))
    ends = np.cumsum([jax.tree.leaves(found)[0].shape[0] for found in inputs]).tolist()
    starts = [0, *ends[:-1]]
    return {name: {tap: value[start:end] for tap, value in taps.items()}
            for name, start, end in zip(names, starts, ends, strict=True)}


def _named(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for every named use, whatever else runs."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
