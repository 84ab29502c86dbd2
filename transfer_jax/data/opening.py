"""From a stream's spec to the stream: open the data, choose the rows of every member, choose the storage."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import numpy as np
import pydantic

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component, check_arguments, lookup
from transfer_jax.data import augment, class_batches
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.device import DeviceStream, read_missing, stack
from transfer_jax.data.host import HostStream
from transfer_jax.data.mixing import mixture
from transfer_jax.data.preprocessing import check_channels, preprocessing
from transfer_jax.data.relabelling import keep_classes
from transfer_jax.data.selection import select
from transfer_jax.data.spec import StreamSpec
from transfer_jax.data.splits import take_split
from transfer_jax.data.stream import Stream, read_example


def open_source(registry: Mapping, component: Component, where: str = "data") -> dict[str, Dataset]:
    """The splits of the data set that `component` names; wrong, missing or ill-typed arguments are UserErrors."""
    function = lookup(registry, component.kind, "kind of data", where)
    arguments = component.arguments
    place = f"{where} (kind {component.kind!r})"
    # `name` is our argument here, while for modules it is the engine's: check_arguments leaves it aside.
    if "name" in arguments and "name" not in inspect.signature(function).parameters:
        raise unknown("argument", "name", inspect.signature(function).parameters, place)
    check_arguments(function, {key: value for key, value in arguments.items() if key != "name"}, place)
    try:
        return pydantic.validate_call(function, config={"strict": True})(**arguments)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"{place}: {'.'.join(map(str, fault['loc']))} = {fault['input']!r} does not fit: "
                        f"{fault['msg'][0].lower()}{fault['msg'][1:]}") from error


def make_stream(splits: Mapping[str, Dataset], name: str, spec: StreamSpec, seeds: tuple[int, ...]) -> Stream:
    """The stream `name` over already opened splits. Raises UserError for all that is wrong with the data."""
    where = f"stream {name!r}"
    dataset = keep_classes(take_split(splits, spec.split, where), spec.classes or (), where)
    points = dataset.columns.get("keypoints", ()) if "keypoints" in spec.targets and spec.labelled else ()
    plan = augment.build_plan(spec.augment, where, points)
    ledger: dict[str, str] = {}
    indices = _choose(dataset, spec, seeds, frozenset(), where)
    if spec.mix is not None:
        mixture(spec.mix, dataset, indices, where)  # its faults show before anything is read
    first = _first_readable(dataset, indices[0], spec, where)
    if "image" in first:
        check_channels(preprocessing(spec), first["image"].shape[2], where)
    elif spec.augment or spec.image_size or spec.channels:
        raise UserError(f"{where}: its examples have no image, so that 'augment', 'image_size' and 'channels' mean "
                        f"nothing; leave them out")
    plan.check(first, where)
    if spec.classes_per_batch:
        class_batches.check(dataset.labels, spec.classes_per_batch, spec.batch_size, indices, where)
    used = np.unique(indices)
    total = len(used) * sum(value.nbytes for value in first.values())
    if spec.storage == "host" or (spec.storage == "auto" and total > spec.device_bytes):
        return HostStream(name, spec, dataset, indices, tuple(seeds), ledger, plan)
    loaded: dict[int, dict] = {}
    bad: dict[int, UnreadableImage] = {}
    while True:  # a bad example is replaced by the next of its class, which may be bad too
        faults = read_missing(dataset, used, spec, loaded)
        if not faults:
            break
        bad.update(faults)
        indices = _choose(dataset, spec, seeds, frozenset(bad), where)
        used = np.unique(indices)
    ledger.update({dataset.name_of(row): str(error) for row, error in bad.items()})
    tables = stack([loaded[int(row)] for row in used], dataset, where)
    return DeviceStream(name, spec, dataset, indices, tuple(seeds), ledger, plan, tables)


def _choose(dataset: Dataset, spec: StreamSpec, seeds: tuple[int, ...], bad: frozenset[int],
            where: str) -> np.ndarray:
    """int32 [S, n]: the rows of every member."""
    per_class = f"[:{spec.labels_per_class}]" if spec.labels_per_class is not None else spec.per_class
    drawn: dict[int, np.ndarray] = {}
    for seed in seeds:
        seed = seed if spec.split_seed is None else spec.split_seed
        if seed not in drawn:
            drawn[seed] = select(dataset, per_class, seed, bad, where, spec.within)
    rows = [drawn[seed if spec.split_seed is None else spec.split_seed] for seed in seeds]
    if len({len(item) for item in rows}) > 1:
        raise UserError(f"{where}: the members have {sorted({len(item) for item in rows})} examples; all must have "
                        "equally many")
    if len(rows[0]) == 0:
        raise UserError(f"{where}: no example is left (split {spec.split!r}, per_class {per_class!r}, within "
                        f"{spec.within!r}, {len(bad)} unreadable); widen the selection")
    if spec.mix is None or dataset.domains is None:
        return np.stack(rows)
    return np.stack([item[np.argsort(dataset.domains[item], kind="stable")] for item in rows])  # part after part


def _first_readable(dataset: Dataset, rows: np.ndarray, spec: StreamSpec, where: str) -> dict[str, np.ndarray]:
    for row in rows:
        try:
            return read_example(dataset, int(row), spec)
        except UnreadableImage:
            if spec.on_bad_example == "error":
                raise
    raise UserError(f"{where}: not one of its {len(rows)} examples can be read; check the data")
