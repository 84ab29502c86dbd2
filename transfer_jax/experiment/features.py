"""Features of a model on a stream: one exact pass without augmentation, kept on disk under the hash of all that they
depend on, so that the second time costs reading them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from filelock import FileLock
from rich.console import Console

from transfer_jax import __version__
from transfer_jax.core.compilation import compiled, enable_compilation_cache
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.inputs import read_inputs
from transfer_jax.core.members import member
from transfer_jax.core.mesh import fetch, own_slots, place_batch, replicate, shard_batch
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.data.sources.locations import cache_dir
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.export import exported_stage
from transfer_jax.experiment.feature_files import Features, Writer, key_of, read_manifest
from transfer_jax.experiment.pretraining import with_pretrained
from transfer_jax.experiment.results import stage_result
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import fresh_variables
from transfer_jax.experiment.staying import all_methods
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.models.domains import reading
from transfer_jax.models.model import first_image_size
from transfer_jax.training.progress import Progress

__all__ = ["Features", "POOLS", "extract", "fresh_model", "trained_model"]

POOLS = ("mean", "max", "cls", "none")
HEAD = "heads/"  # a tap of this name is the output of a head
SHARD_BYTES = 32 * 2**20  # what is held back before it is written


def fresh_model(spec: ExperimentSpec, seed: int | None = None, console: Console | None = None) -> tuple[Assembly, Any]:
    """The model of an experiment before any training (pretrained where the config gives a source), of one seed.

    Returns:
        The assembly of that seed, and {'params': ..., 'batch_stats': ...}.
    """
    assembly = Assembly(_of_seed(spec, seed))
    enable_compilation_cache(spec.compilation_cache)
    params, stats = with_pretrained(assembly, fresh_variables(assembly), None, console)
    return assembly, member({"params": unflatten(params), "batch_stats": stats}, 0)


def trained_model(folder: Path, stage: str | None = None, seed: int | None = None,
                  select: str = "last") -> tuple[Assembly, Any]:
    """The same for the result of a stage of a run (default: the exported one)."""
    workdir = Workdir(folder)
    spec = workdir.spec()
    one = _of_seed(spec, seed)
    stage = stage or exported_stage(Assembly(spec))
    if stage not in spec.stages:
        raise unknown("stage", stage, spec.stages, str(folder))
    enable_compilation_cache(spec.compilation_cache)
    params, stats = stage_result(workdir, spec, stage, select)
    params = unflatten({path: leaf for path, leaf in params.items() if not path.startswith("objective/")})
    return Assembly(one), member({"params": params, "batch_stats": stats}, spec.seeds.index(one.seeds[0]))


def _of_seed(spec: ExperimentSpec, seed: int | None) -> ExperimentSpec:
    seed = spec.seeds[0] if seed is None else seed
    if seed not in spec.seeds:
        raise UserError(f"there is no seed {seed}; the experiment has {', '.join(map(str, spec.seeds))}")
    return spec.model_copy(update={"seeds": (seed,)})


def extract(assembly: Assembly, variables: Mapping[str, Any], stream: str, taps: Sequence[str] = ("pooled",),
            pool: str = "mean", cache_folder: Path | None = None, out: Path | None = None,
            quiet: bool = False) -> Features:
    """Features of the stream's examples (those of the first seed), from the cache or from one pass over the stream.

    A pass that is stopped goes on where its last shard ended, with the same bits. It holds one shard in memory,
    whatever the size of the stream, and splits its batches over the devices.

    Args:
        variables: {'params', 'batch_stats'} of one seed.
        taps: stand side by side in `x`; 'heads/NAME' is the output of a head.
        pool: how maps [H, W, C] and tokens [T, C] become vectors: 'mean', 'max', 'cls' (the first token) or 'none'
            (flattened).
        cache_folder: where features are kept under their hash (default: `features` in the user's cache).
        out: a folder for exactly these features instead.
    """
    if stream not in assembly.spec.streams:
        raise unknown("stream", stream, assembly.spec.streams, "the experiment")
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    if not taps or len(set(taps)) < len(taps):
        raise UserError(f"taps {', '.join(taps)}: name at least one, and each once")
    opened = assembly.stream(stream)
    forward, columns = _forward(assembly, variables, stream, tuple(taps), pool)
    description = describe(assembly, variables, stream, taps, pool)
    folder = out or (cache_folder or cache_dir() / "features") / key_of(description)[:24]
    _check_folder(folder, description)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        found = read_manifest(folder)
        if found is not None and found["complete"] and found["key"] == key_of(description):
            return Features(folder)
        width = max(last for _, last in columns.values())
        devices = assembly.mesh.shape.get("data", 1)
        size = -(-min(assembly.spec.eval_batch_size, opened.size) // devices) * devices
        writer = Writer(folder, description, {
            "batch_size": size, "shard_batches": max(1, SHARD_BYTES // (4 * width * size)), "columns": columns,
            "class_names": list(opened.class_names), "labelled": "label" in opened.example_shapes, "stream": stream})
        _fill(writer, assembly, stream, forward, variables, quiet)
        return writer.finish(_Names(opened.dataset))


class _Names(dict):
    """Row -> where it lies, looked up when asked for."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset

    def __missing__(self, row: int) -> str:
        return self.dataset.name_of(row)


def describe(assembly: Assembly, variables: Mapping[str, Any], stream: str, taps: Sequence[str],
             pool: str) -> dict[str, Any]:
    """All that features depend on, as plain JSON values: weights and data by their hashes."""
    opened, spec = assembly.stream(stream), assembly.spec
    inserted = variables["params"].get("peft", {})  # adapters and prompts, which stay in a stage's result
    used = [*opened.spec.inputs, *(tap for tap in taps if tap.startswith(HEAD)), "peft"]
    heads = {tap: assembly.sized_heads[tap.removeprefix(HEAD)].model_dump(mode="json")
             for tap in taps if tap.startswith(HEAD)}
    return {"transfer_jax": __version__, "precision": spec.precision, "taps": list(taps), "pool": pool,
            "model": {name: spec.model.backbones[name].model_dump(mode="json") for name in opened.spec.inputs} | heads,
            "inserted": {name: method.model_dump(mode="json") for name, method in all_methods(spec).items()
                         if name in inserted},
            "weights": weights_hash(variables, used), "preprocessing": opened.description,
            "inputs": dict(opened.spec.inputs), "data": opened.fingerprint()}


def weights_hash(variables: Mapping[str, Any], parts: Sequence[str]) -> str:
    """SHA-256 of names, types and bytes of the leaves below these parts of the model."""
    found = hashlib.sha256()
    leaves = {f"{kind}/{path}": leaf for kind, tree in variables.items() for path, leaf in flatten(tree).items()
              if path.startswith(tuple(f"{part}/" for part in parts))}
    for path in sorted(leaves):
        leaf = np.ascontiguousarray(leaves[path])
        found.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        found.update(leaf.tobytes())
    return found.hexdigest()


def _check_folder(folder: Path, description: Mapping[str, Any]) -> None:
    """Other features than these are never written over, and nothing but features is ever written into."""
    found = read_manifest(folder)
    if found is None and folder.exists() and (not folder.is_dir() or any(
            not item.name.startswith(".") for item in folder.iterdir())):
        raise UserError(f"{folder} holds something else than features; give an empty or a new folder")
    if found is not None and found["key"] != key_of(description):
        other = [name for name in description if found["description"].get(name) != description[name]]
        raise UserError(f"{folder} holds features of something else (other {', '.join(other)}); give another folder, "
                        f"or remove it")


def _forward(assembly: Assembly, variables: Mapping[str, Any], stream: str, taps: tuple[str, ...],
             pool: str) -> tuple[Callable, dict[str, list[int]]]:
    """A compiled function (variables, feed, number) -> rows of one batch, and the columns of each tap."""
    opened, model = assembly.stream(stream), assembly.model
    for head in (tap.removeprefix(HEAD) for tap in taps if tap.startswith(HEAD)):
        if head not in model.heads:
            raise unknown("head", head, model.heads, "the experiment")

    def vectors(variables: Any, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        found, _ = model.taps(variables, inputs)
        size = first_image_size(inputs)
        apart = model.heads_apart(variables["params"].get("peft", {}))
        for tap in taps:
            if tap.startswith(HEAD):
                head = tap.removeprefix(HEAD)
                with reading(None, head):
                    own = model.taps(variables, inputs)[0] if head in apart else found
                found[tap], _ = model.head(variables, head, own, size)
            elif tap not in found:
                raise unknown("tap", tap, found, f"the model on stream {stream!r}")
        return {tap: pooled(found[tap], pool, tap).astype(jnp.float32) for tap in taps}

    def rows(variables: Any, feed: Any, number: jax.Array, size: int) -> dict[str, jax.Array]:
        batch = shard_batch(assembly.mesh, opened.evaluation_batch(feed, number, size))
        inputs = read_inputs(opened.spec.inputs, batch)
        x = jnp.concatenate(list(vectors(variables, inputs).values()), axis=1)
        labels = {"y": batch["label"]} if "label" in batch else {}
        return {"x": x, "index": batch["index"], "weight": batch["weight"], **labels}

    inputs = read_inputs(opened.spec.inputs, {key: jax.ShapeDtypeStruct((1, *shape), dtype)
                                              for key, (shape, dtype) in opened.example_shapes.items()})
    shapes = jax.eval_shape(vectors, variables, inputs)
    ends = np.cumsum([0, *(shapes[tap].shape[1] for tap in taps)]).tolist()
    return rows, {tap: ends[place:place + 2] for place, tap in enumerate(taps)}


def pooled(features: jax.Array, pool: str, tap: str = "") -> jax.Array:
    """Features [B, ...] -> vectors [B, D]; see `extract`."""
    if features.ndim == 2:
        return features
    if pool == "none":
        return features.reshape(features.shape[0], -1)
    if pool == "cls":
        if features.ndim != 3:
            raise UserError(f"pool 'cls' takes the first token, but the tap {tap!r} is a map of the shape "
                            f"{features.shape[1:]}; choose mean, max or none")
        return features[:, 0]
    axes = tuple(range(1, features.ndim - 1))
    return features.mean(axes) if pool == "mean" else features.max(axes)


def _fill(writer: Writer, assembly: Assembly, stream: str, forward: Callable, variables: Mapping[str, Any],
          quiet: bool) -> None:
    """Adds the shards that are missing."""
    size, each = writer.manifest["batch_size"], writer.manifest["shard_batches"]
    opened = assembly.stream(stream)
    total, start = opened.batches_of(size), writer.done * each
    step = compiled(functools.partial(forward, size=size))
    placed = replicate(assembly.mesh, variables)
    feeds = _feeds(assembly, stream, size, start)
    held: list[dict[str, np.ndarray]] = []
    with Progress(1, enabled=not quiet, total_steps=total) as progress:
        progress.start_stage(f"features of {stream}", total, min(start, total))
        for number, rows in _behind(step(placed, feed, jnp.int32(number)) for number, feed in feeds):
            held.append(rows)
            if len(held) == each or number == total - 1 - start:
                writer.add(_joined(held, stream))
                held = []
            progress.advance(1)
        progress.end_stage()


def _feeds(assembly: Assembly, stream: str, size: int, start: int) -> Iterator[tuple[int, Any]]:
    """(number, data) of every batch from `start` on, of the first member."""
    opened, feed = assembly.stream(stream), assembly.feed(stream)
    if feed is not None:
        one = {name: part[0] if opened.feed_axes()[name] == 0 else part for name, part in feed.items()}
        yield from ((number, one) for number in range(start, opened.batches_of(size)))
        return
    slots = own_slots(assembly.mesh, size)
    for number, batch in enumerate(opened.evaluation_batches(size, slots, start), start):
        whole = place_batch(assembly.mesh, {name: part[:1] for name, part in batch.items()}, size)
        yield number, {name: part[0] for name, part in whole.items()}


def _behind(results: Iterator[Any]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Fetches each result when the next one is on its way, so that the device does not wait for the host."""
    waiting = None
    for count, result in enumerate(results):
        if waiting is not None:
            yield count - 1, fetch(waiting)
        waiting = result
    if waiting is not None:
        yield count, fetch(waiting)


def _joined(held: list[dict[str, np.ndarray]], stream: str) -> dict[str, np.ndarray]:
    """The real rows of some batches."""
    real = np.concatenate([rows["weight"] for rows in held]) > 0
    found = {name: np.concatenate([rows[name] for rows in held])[real] for name in held[0] if name != "weight"}
    if not np.isfinite(found["x"]).all():
        row = int(found["index"][~np.isfinite(found["x"]).all(1)][0])
        raise UserError(f"stream {stream!r}: the features of row {row} are not finite; check the weights and the "
                        f"normalisation of the stream")
    return found
