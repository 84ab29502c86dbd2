"""One mesh factory, and where batches and parameters live on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transfer_jax.core.errors import UserError


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """A mesh over all devices with the named axes; one size may be -1 and takes what the others leave.

    The axes are always `Auto`: flax.linen layers cannot run under explicit sharding.
    """
    devices = jax.devices()
    sizes = dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or known < 1 or len(devices) % known or (not free and known != len(devices)):
        raise UserError(f"config.mesh {sizes} does not fit {len(devices)} devices; sizes must multiply to that number, "
                        f"and at most one may be -1")
    for name in free:
        sizes[name] = len(devices) // known
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes),
                         devices=devices)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Places every array of the tree on all devices."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard_batch(mesh: Mesh, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Inside jit: splits the leading axis of every array over the data axis, where it divides evenly."""
    size = mesh.shape.get("data", 1)
    if size == 1:
        return dict(batch)
    return {name: jax.lax.with_sharding_constraint(
        value, NamedSharding(mesh, P("data") if value.ndim and value.shape[0] % size == 0 else P()))
        for name, value in batch.items()}


def place_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Host arrays [S, B, ...] of this process -> global device arrays, B split over the data axis."""
    sharding = NamedSharding(mesh, P(None, "data"))
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
