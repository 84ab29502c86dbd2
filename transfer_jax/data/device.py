"""Streams whose decoded examples live on the device: a batch is drawn, gathered and augmented in the compiled step."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data import order
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.spec import StreamSpec
from transfer_jax.data.stream import Batch, Stream, read_example

Feed = dict[str, Any]


class DeviceStream(Stream):
    """`tables` holds the examples that any member uses: uint8 images [N,H,W,C], `index` int32 [N], labels and so on."""

    storage = "device"
    tables: dict[str, np.ndarray]

    @property
    def example_shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return self._shapes({key: value[0] for key, value in self.tables.items()})

    def feed(self) -> Feed:
        """What is put on the device once: {'data': tables, 'rows': int32 [S, n]}, rows pointing into the tables."""
        rows = np.searchsorted(self.tables["index"], self.indices).astype(np.int32)
        return {"data": dict(self.tables), "rows": rows}

    def feed_axes(self) -> dict[str, int | None]:
        """vmap in_axes of `feed` over members."""
        return {"data": None, "rows": 0}

    def batch(self, feed: Feed, seed: Any, step: Any) -> Batch:
        """The training batch of `step` of one member (`rows` int32 [n]). Traced; seed and step may be traced too."""
        slots = jnp.arange(self.spec.batch_size, dtype=jnp.uint32)
        picked = order.draw(step, self.spec.batch_size, feed["rows"].shape[0], self.order_seed(seed, jnp), slots, jnp)
        batch = _gather(feed["data"], feed["rows"][picked])
        batch["weight"] = jnp.ones(self.spec.batch_size, jnp.float32)
        return self._finish(batch, seed, step, slots)

    def evaluation_feed(self, batch_size: int) -> Feed:
        """The feed of an exact pass: the same as that of training."""
        return self.feed()

    def evaluation_batch(self, feed: Feed, number: Any, batch_size: int) -> Batch:
        """Batch `number` (may be traced) of an exact pass in order, not augmented; padding has weight 0. Traced."""
        position = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        size = feed["rows"].shape[0]
        batch = _gather(feed["data"], feed["rows"][jnp.minimum(position, size - 1)])
        batch["weight"] = (position < size).astype(jnp.float32)
        return self._finish(batch)


def _gather(data: Mapping[str, Any], rows: Any) -> Batch:
    return {key: jnp.take(value, rows, axis=0, mode="clip") for key, value in data.items()}


def load_tables(dataset: Dataset, rows: np.ndarray, spec: StreamSpec, loaded: dict[int, dict],
                where: str) -> tuple[dict[int, dict], dict[int, UnreadableImage]]:
    """Reads those of `rows` not yet in `loaded`, in threads; returns all readable examples and the faults by row."""
    missing = [int(row) for row in rows if int(row) not in loaded]
    faults: dict[int, UnreadableImage] = {}

    def read(row: int) -> tuple[int, dict | UnreadableImage]:
        try:
            return row, read_example(dataset, row, spec)
        except UnreadableImage as error:
            return row, error

    with ThreadPoolExecutor(spec.threads) as pool:
        for row, found in pool.map(read, missing):
            if isinstance(found, UnreadableImage):
                if spec.on_bad_example == "error":
                    raise found
                faults[row] = found
            else:
                loaded[row] = found
    return loaded, faults


def stack(examples: list[dict[str, np.ndarray]], dataset: Dataset, where: str) -> dict[str, np.ndarray]:
    """Examples -> tables [N, ...]; images of unequal shape are a UserError. Masks become uint8 where they fit."""
    first = examples[0]["image"].shape
    for example in examples:
        shape = example["image"].shape
        if shape != first:
            setting = "channels" if shape[:2] == first[:2] else "image_size"
            raise UserError(f"{where}: {dataset.name_of(int(example['index']))} has the shape {shape}, others have "
                            f"{first}; set {setting} in the stream")
    tables = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    if "mask" in tables and 0 <= tables["mask"].min() and tables["mask"].max() <= 255:
        tables["mask"] = tables["mask"].astype(np.uint8)
    return tables
