"""One mesh factory, and how batches, parameters and results come onto the mesh and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transfer_jax.core.errors import UserError, unknown

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # the axes over which examples are split


def mesh_sizes(axes: Mapping[str, int], devices: int) -> dict[str, int]:
    """The size of every axis on so many devices: one may be -1 and takes what the others leave, `data` if none is
    named so; others that are not named have size 1."""
    for name in axes:
        if name not in AXES:
            raise unknown("axis", name, AXES, "config.mesh")
    sizes = {name: axes.get(name, 1) for name in AXES}
    if "data" not in axes and -1 not in axes.values():
        sizes["data"] = -1
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or known < 1 or devices % known or (not free and known != devices):
        raise UserError(f"config.mesh {dict(axes)} does not fit {devices} devices; sizes must multiply to that number, "
                        f"and at most one may be -1")
    return sizes | {name: devices // known for name in free}


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `model` over the devices (default: all of all processes).

    The axes are always `Auto`: flax.linen layers cannot run under explicit sharding.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(axes, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays -> global arrays with these shardings (one for all, or a tree of them).

    Numpy arrays must be equal in all processes, and go to the devices piece by piece.
    """
    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and (jax.process_count() == 1 or not leaf.is_fully_addressable):
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: one(leaf, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Places every array of the tree on all devices."""
    return place(tree, NamedSharding(mesh, P()))


def fetch(tree: Any) -> Any:
    """Arrays on the devices of all processes -> numpy arrays, whole in every process. All must call it."""
    leaves, structure = jax.tree.flatten(tree)
    split = [number for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)
             and not leaf.is_fully_addressable and not leaf.is_fully_replicated]
    if split:
        whole = _gather(leaves[split[0]].sharding.mesh)([leaves[number] for number in split])
        for number, leaf in zip(split, whole, strict=True):
            leaves[number] = leaf
    return jax.device_get(jax.tree.unflatten(structure, leaves))


@functools.cache
def _gather(mesh: Mesh) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """The program that puts arrays whole on all devices; one for a mesh, so that it is compiled once for its shapes."""
    return jax.jit(lambda parts: parts, out_shardings=NamedSharding(mesh, P()))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_spec(mesh: Mesh, size: int) -> P:
    """How the axis of so many examples is split: evenly over the mesh, or not at all."""
    return P(BATCH) if size % batch_parts(mesh) == 0 else P()


def shard_batch(mesh: Mesh | None, batch: Mapping[str, jax.Array], axis: int = 0) -> dict[str, jax.Array]:
    """Inside jit: splits the axis of the examples of every array over the mesh, where it divides evenly."""
    if mesh is None or batch_parts(mesh) == 1:
        return dict(batch)

    def one(value: jax.Array) -> jax.Array:
        if value.ndim <= axis:
            return value
        spec = P(*(None,) * axis, *batch_spec(mesh, value.shape[axis]))
        return jax.lax.with_sharding_constraint(value, NamedSharding(mesh, spec))

    return {name: one(value) for name, value in batch.items()}


def own_slots(mesh: Mesh, size: int) -> np.ndarray:
    """The places in a batch of `size` examples that lie on devices of this process, ascending."""
    indices = NamedSharding(mesh, batch_spec(mesh, size)).addressable_devices_indices_map((size,))
    return np.unique(np.concatenate([np.arange(size)[index] for index in indices.values()]))


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], size: int) -> dict[str, jax.Array]:
    """Arrays [S, own, ...] of the `own_slots` of this process -> global arrays [S, `size`, ...]."""
    slots = own_slots(mesh, size)
    sharding = NamedSharding(mesh, P(None, *batch_spec(mesh, size)))

    def one(value: np.ndarray) -> jax.Array:
        def piece(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[1].indices(size)
            first = np.searchsorted(slots, start)
            return value[(index[0], slice(first, first + stop - start), *index[2:])]

        return jax.make_array_from_callback((value.shape[0], size, *value.shape[2:]), sharding, piece)

    return {name: one(value) for name, value in batch.items()}
