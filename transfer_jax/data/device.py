"""Streams whose decoded examples live on the device: a batch is drawn, gathered and augmented in the compiled step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data import class_batches, order
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.spec import StreamSpec
from transfer_jax.data.stream import Batch, Stream, read_example

Feed = dict[str, Any]
LEAST_TABLE = 512
LEAST_ROWS = 128
MOST_PADDED = 16 * 2**20  # bytes


@dataclasses.dataclass
class DeviceStream(Stream):
    """`tables` holds the examples that any member uses: uint8 images [N,H,W,C], `index` int32 [N], labels and so on."""

    tables: dict[str, np.ndarray]

    storage = "device"

    @property
    def example_shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return self._shapes({**{key: value[0] for key, value in self.tables.items()}, "position": np.int32(0)})

    def thinned(self, most: int) -> Stream:
        fewer = super().thinned(most)
        if fewer is self:
            return self
        used = np.isin(self.tables["index"], fewer.indices)
        return dataclasses.replace(fewer, tables={key: value[used] for key, value in self.tables.items()})

    def feed(self) -> Feed:
        """What is put on the device once: tables, `rows` int32 [S, n] pointing into them, `count` n, `salt`, `order`,
        and the parts of a mixture.

        Tables and rows are padded to a power of two and their true length is data: so streams that differ only in the
        number of labels, or in their name, share one compiled program.
        """
        rows = np.searchsorted(self.tables["index"], self.indices).astype(np.int32)
        mixed = {} if self.spec.mix is None else dict(zip(("sizes", "shares"), self.mixture, strict=True))
        if self.spec.classes_per_batch:
            mixed = {f"class_{key}": value for key, value in self.class_table.items()}
        return {**mixed, "data": {key: _padded(value, 0, LEAST_TABLE) for key, value in self.tables.items()},
                "rows": _padded(rows, 1, LEAST_ROWS), "count": np.uint32(self.size),
                "salt": np.uint32(self.salt), "order": np.uint32(self.order_salt)}

    def feed_axes(self) -> dict[str, int | None]:
        """vmap in_axes of `feed` over members."""
        mixed = {} if self.spec.mix is None else {"sizes": 0, "shares": 0}
        if self.spec.classes_per_batch:
            mixed = dict.fromkeys(("class_places", "class_starts", "class_counts"), 0)
        return {**mixed, "data": None, "rows": 0, "count": None, "salt": None, "order": None}

    def batch(self, feed: Feed, seed: Any, step: Any) -> Batch:
        """The training batch of `step` of one member (`rows` int32 [n]). Traced; seed and step may be traced too."""
        batch = self.gathered(feed, self.positions(feed, seed, step))
        slots = jnp.arange(self.spec.batch_size, dtype=jnp.uint32)
        return self._finish(batch, order.hashed(seed, feed["salt"], xp=jnp), step, slots)

    def positions(self, feed: Feed, seed: Any, step: Any) -> Any:
        """Where the examples of a training batch stand in `rows`, int32 [batch]. Traced."""
        slots = jnp.arange(self.spec.batch_size, dtype=jnp.uint32)
        own = order.hashed(seed, feed["order"], xp=jnp)
        if self.spec.classes_per_batch:
            place = class_batches.draw(step, self.spec.classes_per_batch, self.spec.batch_size, feed["class_starts"],
                                       feed["class_counts"], own, slots, jnp)
            return feed["class_places"][place]
        if "shares" in feed:
            return order.draw_mixed(step, self.spec.batch_size, feed["sizes"], feed["shares"], own, slots, jnp)
        return order.draw(step, self.spec.batch_size, feed["count"], own, slots, jnp)

    def gathered(self, feed: Feed, positions: Any) -> Batch:
        """The examples at these positions as they lie in the tables, with weight 1 and their `position`. Traced."""
        return {**_gather(feed["data"], feed["rows"][positions]), "position": positions.astype(jnp.int32),
                "weight": jnp.ones(self.spec.batch_size, jnp.float32)}

    def evaluation_batch(self, feed: Feed, number: Any, batch_size: int) -> Batch:
        """Batch `number` (may be traced) of an exact pass in order, not augmented; padding has weight 0. Traced."""
        position = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        size = feed["count"].astype(jnp.int32)
        batch = _gather(feed["data"], feed["rows"][jnp.minimum(position, size - 1)])
        batch["weight"] = (position < size).astype(jnp.float32)
        return self._finish(batch)


def _padded(value: np.ndarray, axis: int, least: int) -> np.ndarray:
    """`value` with zeros added along `axis` up to a power of two, at least `least`; large tables stay as they are."""
    length = value.shape[axis]
    wanted = max(least, 1 << (length - 1).bit_length())
    if value.nbytes * wanted > MOST_PADDED * length:
        return value
    widths = [(0, wanted - length if i == axis else 0) for i in range(value.ndim)]
    return np.pad(value, widths)


def _gather(data: Mapping[str, Any], rows: Any) -> Batch:
    return {key: jnp.take(value, rows, axis=0, mode="clip") for key, value in data.items()}


def read_missing(dataset: Dataset, rows: np.ndarray, spec: StreamSpec,
                 loaded: dict[int, dict]) -> dict[int, UnreadableImage]:
    """Reads those of `rows` that are not yet in `loaded` into it, in threads; returns the faults by row."""
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
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise found
                faults[row] = found
            else:
                loaded[row] = found
    return faults


def _image_shape(example: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    return example["image"].shape if "image" in example else ()


def stack(examples: list[dict[str, np.ndarray]], dataset: Dataset, where: str) -> dict[str, np.ndarray]:
    """Examples -> tables [N, ...]; images of unequal shape are a UserError. Masks become uint8 where they fit."""
    first = _image_shape(examples[0])
    for example in examples:
        shape = _image_shape(example)
        if shape != first:
            setting = "channels" if shape[:2] == first[:2] else "image_size"
            raise UserError(f"{where}: {dataset.name_of(int(example['index']))} has the shape {shape}, others have "
                            f"{first}; set {setting} in the stream")
    tables = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    if "mask" in tables and 0 <= tables["mask"].min() and tables["mask"].max() <= 255:
        tables["mask"] = tables["mask"].astype(np.uint8)
    return tables
