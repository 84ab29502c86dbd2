"""The stream: what the engine sees of data. Two kinds (device.py, host.py) draw the same batches from one order."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.inputs import entries
from transfer_jax.data import augment, class_batches, order
from transfer_jax.data.boxes import prepare_boxes
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.mixing import mixture
from transfer_jax.data.preprocessing import normalise, prepare_image, prepare_mask, preprocessing
from transfer_jax.data.spec import StreamSpec
from transfer_jax.data.targets import TARGETS, prepare_target, unknown_target

Batch = dict[str, Any]
KNOWN = "known/"  # how the batch entries begin that say which examples have a label


@dataclasses.dataclass
class Stream:
    """An endless supply of training batches and an exact pass for evaluation, for S members (seeds) at once.

    `indices` int32 [S, n]: the rows of `dataset` that each member sees; `size` is n. `storage` is 'device' or 'host'.
    `example_shapes`: key -> (shape, dtype) of one element of a batch. `ledger`: name of a skipped example -> reason.
    """

    name: str
    spec: StreamSpec
    dataset: Dataset
    indices: np.ndarray
    seeds: tuple[int, ...]
    ledger: dict[str, str]
    plan: augment.Plan

    storage = ""

    @property
    def size(self) -> int:
        return self.indices.shape[1]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    @property
    def box_class_names(self) -> tuple[str, ...]:
        """Classes of the boxes; none where the stream shows no boxes."""
        return self.dataset.box_class_names if self.spec.boxes else ()

    @property
    def tag_names(self) -> tuple[str, ...]:
        """The classes of which an image may show several; none where the stream shows no such labels."""
        return self.dataset.columns.get("labels", ()) if "labels" in self.spec.targets else ()

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        return self.dataset.columns.get("keypoints", ()) if "keypoints" in self.spec.targets else ()

    @property
    def channel_names(self) -> tuple[str, ...]:
        """A name for every channel of the images."""
        channels = self.example_shapes["image"][0][-1] if "image" in self.example_shapes else 0
        return {0: (), 1: ("grey",), 3: ("red", "green", "blue")}.get(channels, tuple(map(str, range(channels))))

    @property
    def description(self) -> dict[str, Any]:
        """What must travel with the weights, for `preprocess_image`; size and channels are those of the batches. Of
        texts without images: `words`, those that the numbers of tokens stand for."""
        if "image" not in self.example_shapes:
            return {"words": list(self.dataset.words)}
        height, width, channels = self.example_shapes["image"][0]
        return {**preprocessing(self.spec), "image_size": [height, width], "channels": channels}

    @property
    def shared_rows(self) -> bool:
        """Whether all members see the same rows (as they do unless the split is drawn per seed)."""
        return bool((self.indices == self.indices[:1]).all())

    @property
    def example_shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        raise TypeError(f"{type(self).__name__} defines no example_shapes")

    def thinned(self, most: int) -> Stream:
        """The stream with at most so many examples of each member, drawn once for all (by the name) and in order.

        Not every k-th example: data sets often go round their classes.
        """
        if self.size <= most:
            return self
        places = np.sort(np.random.default_rng(self.salt).permutation(self.size)[:most])
        return dataclasses.replace(self, indices=self.indices[:, places])

    def fingerprint(self) -> str:
        """A hash that changes when the first member's examples, their order, labels or class names change."""
        rows = self.indices[0]
        found = hashlib.sha256(json.dumps([self.class_names, self.spec.labelled]).encode())
        if self.dataset.labels is not None:
            found.update(np.ascontiguousarray(self.dataset.labels[rows]).tobytes())
        with ThreadPoolExecutor(self.spec.threads) as pool:
            for stamp in pool.map(self._stamp, (int(row) for row in rows)):
                found.update(stamp)
        return found.hexdigest()

    def _stamp(self, row: int) -> bytes:
        name = self.dataset.name_of(row)
        try:
            return name.encode() + self.dataset.stamp(row)
        except UnreadableImage:  # it is skipped, or raises where it is read
            return name.encode()

    def batches_of(self, batch_size: int) -> int:
        """Number of batches of an exact pass."""
        return -(-self.size // batch_size)

    def order_seed(self, seed: Any) -> Any:
        """The seed of this stream's order. The name enters it: else two streams of one size would walk in step, and
        since rows are sorted alike their batches would show the same classes at the same places."""
        return order.hashed(seed, np.uint32(self.order_salt))

    def augment_seed(self, seed: Any, xp: Any = np) -> Any:
        """The seed of what is drawn for its augmentations."""
        return order.hashed(seed, np.uint32(self.salt), xp=xp)

    @property
    def salt(self) -> int:
        """A number made of the name."""
        return zlib.crc32(self.name.encode())

    @property
    def order_salt(self) -> int:
        """A number made of the name of the stream whose order this one has."""
        return zlib.crc32((self.spec.follows or self.name).encode())

    def drawn(self, step: int, seed: int, slots: np.ndarray | None = None) -> np.ndarray:
        """Host form of the draw: positions in a row of `indices`, int32 [batch] (or one per slot)."""
        if self.spec.classes_per_batch:
            table = {key: value[self.seeds.index(seed)] for key, value in self.class_table.items()}
            slots = np.arange(self.spec.batch_size) if slots is None else slots
            return table["places"][class_batches.draw(step, self.spec.classes_per_batch, self.spec.batch_size,
                                                      table["starts"], table["counts"], self.order_seed(seed), slots)]
        if self.spec.mix is None:
            return order.draw(step, self.spec.batch_size, self.size, self.order_seed(seed), slots)
        sizes, shares = (table[self.seeds.index(seed)] for table in self.mixture)
        return order.draw_mixed(step, self.spec.batch_size, sizes, shares, self.order_seed(seed), slots)

    @functools.cached_property
    def mixture(self) -> tuple[np.ndarray, np.ndarray]:
        """Of merged data that are mixed: examples of each part, and places of each in an epoch, int32 [S, P]."""
        return mixture(self.spec.mix, self.dataset, self.indices, f"stream {self.name!r}")

    @functools.cached_property
    def class_table(self) -> dict[str, np.ndarray]:
        """See `class_batches.class_table`."""
        return class_batches.class_table(self.dataset.labels, self.indices)

    def _finish(self, batch: Batch, augment_seed: Any = None, step: Any = None, slots: Any = None,
                per_example: bool = True) -> Batch:
        """uint8 images -> augmented (when a step is given) and normalised float32; masks -> int32; batches without
        images stay as they are. Traced."""
        if "image" not in batch:
            return batch
        batch = {**batch, "image": batch["image"].astype(jnp.float32) * np.float32(1 / 255)}
        if "mask" in batch:
            batch["mask"] = batch["mask"].astype(jnp.int32)
        if step is not None and self.spec.augment:
            key = jax.random.fold_in(jax.random.key(augment_seed), step)
            batch = self.plan.apply(batch, key, slots, len(self.class_names), per_example)
        batch["image"] = normalise(batch["image"], preprocessing(self.spec), jnp)
        return batch

    def _shapes(self, example: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """`example_shapes`, found by tracing the end of the pipeline on a batch of one."""
        one = {key: jax.ShapeDtypeStruct((1, *value.shape), value.dtype) for key, value in example.items()}
        one["weight"] = jax.ShapeDtypeStruct((1,), np.float32)
        done = jax.eval_shape(lambda batch: self._finish(batch, jnp.uint32(0), 0, jnp.arange(1)), one)
        return {key: (tuple(value.shape[1:]), np.dtype(value.dtype)) for key, value in done.items()}


def read_example(dataset: Dataset, row: int, spec: StreamSpec, native_size: bool = False) -> dict[str, np.ndarray]:
    """One example ready to be batched: `image` uint8 [H,W,C] (of data that have them), `index` int32, and what the
    stream may show of `label` int32, `mask` int32 [H,W], `domain` int32, `boxes` and the kinds of `TARGETS`.
    `native_size` leaves the size to an augmentation that crops.

    Where the data set is `partial` in a kind of label, every example also says whether its own is known, `known/<kind>`
    float32 1 or 0; one that is not known is 0.
    """
    description = preprocessing(spec)
    if native_size:
        description["image_size"] = None
    loaded = dataset.load(row)
    example = {"index": np.asarray(row, np.int32)}
    if "image" in loaded:
        example["image"] = prepare_image(loaded["image"], description, dataset.name_of(row))
    size = loaded["image"].shape[:2] if "image" in loaded else (0, 0)
    if spec.labelled and "label" in loaded:
        example["label"] = np.asarray(loaded["label"], np.int32)
    if spec.labelled and "mask" in loaded:
        example["mask"] = prepare_mask(loaded["mask"], description)
    for key in entries(spec.inputs):
        if key not in example and key not in loaded:
            raise UserError(f"a stream reads {key!r}, but the data have "
                            f"{', '.join(name for name in loaded if name != 'label')}; name one of these in its inputs")
        example.setdefault(key, np.asarray(loaded.get(key)))
    if spec.labelled and spec.boxes:
        example["boxes"] = _boxes_of(loaded, dataset, row, spec, description)
    for kind in spec.targets if spec.labelled else ():
        columns = len(dataset.columns.get(kind, ()))
        if kind in loaded:
            example[kind] = prepare_target(kind, loaded[kind], size, description, columns, dataset.name_of(row))
        elif kind not in dataset.partial:
            raise UserError(f"the stream asks for targets={spec.targets}, but {dataset.name_of(row)} has no {kind!r}; "
                            f"it has {', '.join(name for name in loaded if name in TARGETS) or 'none of this sort'}")
    for kind in sorted(dataset.partial - (TARGETS.keys() - set(spec.targets))) if spec.labelled else ():
        known, shown = kind in example and (kind != "label" or example[kind] >= 0), _shown_size(example)
        if not known and kind in TARGETS:
            example[kind] = unknown_target(kind, shown, len(dataset.columns.get(kind, ())))
        elif not known:
            example[kind] = np.zeros(shown if kind == "mask" else (), np.int32)
        example[KNOWN + kind] = np.asarray(known, np.float32)
    if dataset.domains is not None:
        example["domain"] = np.asarray(dataset.domains[row], np.int32)
    return example


def _shown_size(example: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Height and width of the image in the batch; 0 without one."""
    return example["image"].shape[:2] if "image" in example else (0, 0)


def _boxes_of(loaded: Mapping[str, Any], dataset: Dataset, row: int, spec: StreamSpec,
              description: Mapping[str, Any]) -> np.ndarray:
    """float32 [boxes, 5]; see `prepare_boxes`."""
    if "boxes" not in loaded:
        raise UserError(f"the stream asks for boxes={spec.boxes}, but {dataset.name_of(row)} has no entry of boxes; "
                        f"remove 'boxes' or use data with boxes")
    return prepare_boxes(loaded["boxes"], loaded.get("box_labels"), spec.boxes, loaded["image"].shape[:2], description,
                         len(dataset.box_class_names), dataset.name_of(row))
