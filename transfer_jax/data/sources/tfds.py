"""The kind of data `tfds`. What it reads with takes a second to import, so it comes when a data set is opened."""

from __future__ import annotations

from transfer_jax.data.dataset import Dataset


def tfds_source(*, name: str = "", config: str | None = None, version: str | None = None, data_dir: str | None = None,
                image_key: str = "image", label_key: str | None = None, mask_key: str | None = None,
                columns: dict[str, tuple[str, ...]] | None = None) -> dict[str, Dataset]:
    """The splits of a TFDS data set.

    Our own builders (`digits`, `digits_photo`, `digit_scenes`) are prepared on first use into the cache folder; others
    must lie prepared, in array_record form, in `data_dir` (default: that of TFDS). Without `label_key` and `mask_key`
    the features `label` (or the only class label) and `mask` or `segmentation_mask` are taken where they exist. So are
    tensors called like a kind of `targets.py`, and a list of class labels called `labels`; `columns` names their
    columns, {'keypoints': ('nose', 'tail')}.
    """
    from transfer_jax.data.sources.tfds_reading import prepared_splits

    return prepared_splits(name, config, version, data_dir, image_key, label_key, mask_key, columns or {})
