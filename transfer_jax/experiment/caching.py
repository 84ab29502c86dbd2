"""Frozen layers that see the same images every epoch run once: a stage then trains on what they gave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError

from transfer_jax.core.compilation import compiled
from transfer_jax.core.members import over_members
from transfer_jax.core.mesh import fetch, replicate, shard_batch
from transfer_jax.core.paths import unflatten
from transfer_jax.data.cached import CachedStream
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.entering import freeze_point, moving_parts
from transfer_jax.experiment.stage import ReadyStage
from transfer_jax.models.domains import statistics_of
from transfer_jax.models.model import Model, qualified
from transfer_jax.params.peft import PREFIX
from transfer_jax.training.state import Flat

VISITS = 2  # how often a stage must see an example on average for a pass of its own to pay
READ = ("features", "start_features")


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where a stream's images can give way to features: behind `tap` of `backbone`, of which `taps` are read.

    `before` computes them, `size` is what those of an example take, in bytes; `goes_on`: whether something of the
    backbone is left behind the tap.
    """

    backbone: str
    tap: str
    taps: tuple[str, ...]
    before: Model
    size: int
    goes_on: bool


def with_features(ready: ReadyStage, assembly: Assembly, params: Flat, batch_stats: Any,
                  feeds: Mapping[str, Any]) -> tuple[ReadyStage, dict[str, Any], list[str]]:
    """The stage with features in place of images where that changes nothing but the time, its feeds, and what to tell.

    Args:
        params, batch_stats: at the start of the stage, [S, ...].
        feeds: stream -> its data on the device.
    """
    streams, placed, notes = dict(ready.program.streams), dict(feeds), []
    for name, stream in ready.program.streams.items():
        cut = find_cut(ready, assembly, name) if _pays(ready, stream) else None
        if cut is None or assembly.members * stream.size * cut.size > stream.spec.device_bytes:
            continue
        taps = _computed(assembly, name, cut, params, batch_stats, feeds[name])
        size = tuple(stream.example_shapes[stream.spec.inputs[cut.backbone]][0][:2])
        streams[name] = CachedStream(stream, cut.tap, size, cut.goes_on)
        placed[name] = streams[name].feed(feeds[name], replicate(assembly.mesh, taps))
        notes.append(f"{ready.name}: nothing moves up to {cut.tap}, so its features of the {stream.size} examples of "
                     f"{name} were computed once")
    program = dataclasses.replace(ready.program, streams=streams)
    return (dataclasses.replace(ready, program=program) if notes else ready), placed, notes


def find_cut(ready: ReadyStage, assembly: Assembly, name: str) -> Cut | None:
    """The deepest tap up to which the network gives the same for an example in every step; None if there is none."""
    program, stream, spec = ready.program, ready.program.streams[name], ready.spec
    if (spec.cache != "auto" or stream.storage != "device" or stream.spec.augment or len(stream.spec.inputs) != 1
            or spec.weight_noise or spec.stochastic_norm is not None or spec.mix_style or program.model.inserts
            or (program.joint_forward and len(program.streams) > 1)):
        return None
    (backbone,) = stream.spec.inputs
    module = assembly.model.backbones[backbone]
    added = [path for path in ready.shapes if path.startswith(PREFIX)]  # frozen ones change what the layers compute
    tap = freeze_point(module, moving_parts([*program.partition.trainable, *added], backbone))
    read = _read_taps(ready, assembly, name, backbone)
    if tap is None or read is None:
        return None
    names = list(module.tap_names)
    last = module.until or names[-1]
    before = dataclasses.replace(assembly.model, backbones={backbone: module.clone(until=tap)})
    kept = tuple(qualified(backbone, t) for t in names[:names.index(tap) + 1]
                 if qualified(backbone, t) in read or t == tap != last)
    shapes = _shapes_every_step(ready, assembly, stream, before, backbone, tap if tap != last else None)
    if not kept or shapes is None:
        return None
    size = sum(shapes[name].size * shapes[name].dtype.itemsize for name in kept)
    return Cut(backbone, tap, kept, before, size, tap != last)


def _read_taps(ready: ReadyStage, assembly: Assembly, name: str, backbone: str) -> set[str] | None:
    """Names of the taps that terms and heads read of a stream; None if a head does not say."""
    found: set[str] = set()
    for update in ready.program.updates:
        for term in update.terms:
            if name not in term.spec.roles.values():
                continue
            quantities = {quantity for _, _, quantity in term.quantities}
            found |= {term.spec.tap} if quantities & set(READ) else set()
            if term.reads(("inputs", "apply_model")) or ("labels" in quantities and term.label_key == "image"):
                return None
            found |= set(term.spec.taps) if "layers" in quantities else set()
            for name_of_head in term.heads:
                head = assembly.model.heads[name_of_head]
                taps = getattr(head, "taps", None) or getattr(head, "tap", None)
                if taps is None:
                    return None
                found |= {taps} if isinstance(taps, str) else set(taps)
    return found


def _shapes_every_step(ready: ReadyStage, assembly: Assembly, stream: Any, before: Model, backbone: str,
                       cut: str | None) -> dict[str, Any] | None:
    """Shapes of the taps of one example; None if something random runs in `before`, one of its norms moves its
    statistics, or the network cannot go on behind `cut`."""
    program = ready.program
    norms = before.norm_paths(_shapes_before(assembly, before, backbone))
    if not set(norms) <= program.frozen_norms(program.partition.active(program.total_steps)):
        return None
    shape, dtype = stream.example_shapes[stream.spec.inputs[backbone]]
    if cut is not None and not assembly.model.backbones[backbone].resumes:
        return None
    try:
        return jax.eval_shape(_forward(before, backbone), assembly.variable_shapes,
                              jax.ShapeDtypeStruct((1, *shape), dtype))
    except InvalidRngError:  # something random asks for its key
        return None


def _shapes_before(assembly: Assembly, before: Model, backbone: str) -> Any:
    """Shapes of the variables that the part before the cut has."""
    model = dataclasses.replace(before, heads={})
    return jax.eval_shape(lambda key: model.init(key, {backbone: assembly.example_inputs[backbone]}),
                          jax.random.key(0))


def _forward(model: Model, backbone: str) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    """Variables and inputs -> taps as a training step would give them, were nothing random."""
    def run(variables: Any, inputs: jax.Array) -> dict[str, jax.Array]:
        norms = frozenset(model.norm_paths(variables))
        return model.taps(variables, {backbone: inputs}, train=True, frozen_norms=norms)[0]

    return run


def _pays(ready: ReadyStage, stream: Any) -> bool:
    """Whether the stage sees its examples often enough."""
    repeats = sum(update.repeats for update in ready.program.updates if stream.name in update.streams)
    return ready.program.total_steps * stream.spec.batch_size * repeats >= VISITS * stream.size


def _computed(assembly: Assembly, name: str, cut: Cut, params: Flat, batch_stats: Any,
              feed: Any) -> dict[str, np.ndarray]:
    """The taps of all examples of a stream, [S, n, ...]."""
    stream, size = assembly.stream(name), min(assembly.spec.eval_batch_size, assembly.stream(name).size)
    forward = _forward(cut.before, cut.backbone)

    def rows(variables: Any, feed: Any, number: jax.Array) -> dict[str, jax.Array]:
        batch = shard_batch(assembly.mesh, stream.evaluation_batch(feed, number, size))
        taps = forward(variables, batch[stream.spec.inputs[cut.backbone]])
        return {tap: taps[tap] for tap in cut.taps}

    step = compiled(over_members(rows, assembly.members, (0, stream.feed_axes(), None), assembly.spec.members))
    tree = unflatten({path: leaf for path, leaf in params.items() if path.startswith(f"{cut.backbone}/")})
    variables = {"params": tree, "batch_stats": statistics_of(batch_stats, stream.spec.domain)}
    parts = [fetch(step(variables, feed, jnp.int32(number))) for number in range(stream.batches_of(size))]
    return {tap: np.concatenate([part[tap] for part in parts], axis=1)[:, :stream.size] for tap in parts[0]}

