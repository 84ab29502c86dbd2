"""Floor 1: streams of batches from TFDS, folders, tables, arrays and standard formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transfer_jax.core.spec import Component
from transfer_jax.data import opening
from transfer_jax.data.augment import AUGMENTATIONS, BATCH_AUGMENTATIONS, HOST_AUGMENTATIONS
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.preprocessing import preprocess_image, preprocessing
from transfer_jax.data.sources.arrays import arrays_source, from_arrays
from transfer_jax.data.sources.camvid import camvid_source
from transfer_jax.data.sources.coco import coco_source
from transfer_jax.data.sources.coco_keypoints import coco_keypoints_source
from transfer_jax.data.sources.folders import folder_source
from transfer_jax.data.sources.merge import merge_source
from transfer_jax.data.sources.pairs import pairs_source
from transfer_jax.data.sources.receipts import sroie_source
from transfer_jax.data.sources.standard import idx_source, mnistm_source, usps_source
from transfer_jax.data.sources.tables import table_source
from transfer_jax.data.sources.texts import texts_source
from transfer_jax.data.sources.tfds import tfds_source
from transfer_jax.data.sources.voc import voc_source
from transfer_jax.data.spec import StreamSpec
from transfer_jax.data.stream import Stream

__all__ = ["AUGMENTATIONS", "BATCH_AUGMENTATIONS", "HOST_AUGMENTATIONS", "SOURCES", "Dataset", "Stream", "StreamSpec",
           "from_arrays", "open_source", "open_stream", "preprocess_image", "preprocessing"]

SOURCES = {
    "tfds": tfds_source,
    "folder": folder_source,
    "table": table_source,
    "arrays": arrays_source,
    "idx": idx_source,
    "usps": usps_source,
    "mnistm": mnistm_source,
    "sroie": sroie_source,
    "coco": coco_source,
    "coco_keypoints": coco_keypoints_source,
    "camvid": camvid_source,
    "voc": voc_source,
    "pairs": pairs_source,
    "texts": texts_source,
    "merge": merge_source,
}


def open_source(component: Component, where: str = "data") -> dict[str, Dataset]:
    """The splits of the data set `{kind, ...arguments}`; its faults are UserErrors that name `where`."""
    return opening.open_source(SOURCES, component, where)


def open_stream(name: str, spec: StreamSpec, seeds: Sequence[int],
                splits: Mapping[str, Dataset] | None = None) -> Stream:
    """Opens the stream `name` for the members `seeds`: a DeviceStream or a HostStream, see `Stream`.

    `splits`, for example from `from_arrays`, replaces the data set that the spec names. Raises UserError for data
    that are absent, empty, unreadable or too few.
    """
    if splits is None:
        splits = open_source(spec.data, f"stream {name!r}")
    return opening.make_stream(splits, name, spec, tuple(seeds))
