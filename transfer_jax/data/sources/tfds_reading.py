"""TFDS data sets in array_record form, read (and, for our own builders, prepared) without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.data.builders import BUILDERS
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.decoding import decode_image, decode_mask
from transfer_jax.data.sources.locations import cache_dir
from transfer_jax.data.targets import TARGETS


class TfdsDataset(Dataset):
    """One split of a prepared builder. Images are taken as encoded bytes and decoded by our own decoder."""

    def __init__(self, builder: Any, split: str, keys: dict[str, str], columns: dict[str, tuple[str, ...]]):
        self._builder, self._split, self._keys = builder, split, keys
        features = builder.info.features
        self._listed = _listed_classes(features)
        self._tensors = [kind for kind in TARGETS if kind in features and type(features[kind]) is tfds.features.Tensor]
        counted = {kind: features[kind].shape[:1] for kind in self._tensors if TARGETS[kind].columns}
        self.columns = {**{kind: tuple(map(str, range(*(shape or (1,))))) for kind, shape in counted.items()},
                        **({"labels": self._listed} if self._listed else {}), **columns}
        named = keys.get("label") or keys.get("mask")
        names = getattr(builder.info.features[named], "names", None) or () if named else ()
        self.class_names = tuple(str(name) for name in names)
        self.box_class_names = _box_names(builder.info.features)

    def __len__(self) -> int:
        return self._builder.info.splits[self._split].num_examples

    @functools.cached_property
    def _source(self) -> Any:
        features = self._builder.info.features
        skip = {key: tfds.decode.SkipDecoding() for key in features if isinstance(features[key], tfds.features.Image)}
        return self._builder.as_data_source(split=self._split, decoders=skip)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        if "label" not in self._keys:
            return None
        identity = f"{self._builder.data_path}/{self._split}/{self._keys['label']}/{len(self)}"
        cached = cache_dir() / "labels" / (hashlib.sha256(identity.encode()).hexdigest()[:24] + ".npy")
        if cached.is_file() and cached.stat().st_mtime >= os.stat(self._builder.data_path).st_mtime:
            return np.load(cached)
        labels = np.array([self._source[row][self._keys["label"]] for row in range(len(self))], np.int32)
        _save_atomically(cached, labels)
        return labels

    def load(self, row: int) -> dict[str, Any]:
        record = self._source[row]
        example: dict[str, Any] = {"image": decode_image(record[self._keys["image"]], self.name_of(row))}
        if "label" in self._keys:
            example["label"] = int(record[self._keys["label"]])
        if "mask" in self._keys:
            example["mask"] = decode_mask(record[self._keys["mask"]], self.name_of(row))
        objects = record.get("objects")
        if isinstance(objects, dict) and "bbox" in objects:
            example["boxes"] = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
            if "label" in objects:
                example["box_labels"] = np.asarray(objects["label"], np.int32)
        if self._listed:
            example["labels"] = np.isin(np.arange(len(self._listed)), record["labels"]).astype(np.int32)
        return example | {kind: record[kind] for kind in self._tensors}

    def name_of(self, row: int) -> str:
        return f"{self._builder.info.full_name} {self._split}[{row}]"

    def stamp(self, row: int) -> bytes:
        encoded = self._source[row][self._keys["image"]]
        return hashlib.sha256(encoded).digest() if isinstance(encoded, bytes) else super().stamp(row)


def _listed_classes(features: Any) -> tuple[str, ...]:
    """The classes of the feature `labels`, where it is a list of class labels."""
    classes = getattr(getattr(features["labels"], "feature", None), "names", None) if "labels" in features else None
    return tuple(map(str, classes or ()))


def _box_names(features: Any) -> tuple[str, ...]:
    """Classes of the feature `objects`; one without a name where its boxes have none."""
    objects = getattr(features["objects"], "feature", None) if "objects" in features else None
    if objects is None or "bbox" not in objects:
        return ()
    names = getattr(objects["label"], "names", None) if "label" in objects else None
    return tuple(str(name) for name in names or ("object",))


def _save_atomically(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as stream:
        np.save(stream, array)
    os.replace(stream.name, path)


def prepared_splits(name: str, config: str | None, version: str | None, data_dir: str | None, image_key: str,
                    label_key: str | None, mask_key: str | None,
                    columns: dict[str, tuple[str, ...]]) -> dict[str, Dataset]:
    """See `tfds_source`, whose arguments these are."""
    if not name:
        raise UserError(f"a data set of kind 'tfds' needs the argument 'name', such as {sorted(BUILDERS)[0]!r}")
    if name in BUILDERS and data_dir is None:
        builder = own_builder(name, config)
    else:
        builder = _foreign_builder(name, config, version, data_dir)
    keys = _find_keys(builder, image_key, label_key, mask_key)
    return {split: TfdsDataset(builder, split, keys, columns) for split in builder.info.splits}


def own_builder(name: str, config: str | None = None) -> Any:
    """One of our builders, prepared. Processes may race for it: each prepares aside, one renaming wins."""
    cls = BUILDERS[name]
    configs = [item.name for item in cls.BUILDER_CONFIGS]
    if config is not None and config not in configs:
        raise unknown("config", config, configs, f"the data set {name!r}")
    home = cache_dir() / "tfds"
    builder = cls(data_dir=home, config=config, file_format="array_record")
    target = Path(builder.data_path)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = tempfile.mkdtemp(prefix="preparing-", dir=home)
        try:
            _prepare_quietly(cls(data_dir=aside, config=config, file_format="array_record"))
            made = Path(aside) / target.relative_to(home)
            with contextlib.suppress(OSError):  # another process was first, and its data are the same
                os.rename(made, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        builder = cls(data_dir=home, config=config, file_format="array_record")
    return builder


def _prepare_quietly(builder: Any) -> None:
    # TFDS talks to both streams while it prepares, for seconds at most here.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()


def _foreign_builder(name: str, config: str | None, version: str | None, data_dir: str | None) -> Any:
    full = name + (f"/{config}" if config else "") + (f":{version}" if version else "")
    place = f", data_dir={data_dir!r}" if data_dir else ""
    command = (f"python -c \"import tensorflow_datasets as tfds; tfds.builder({full!r}{place}, "
               "file_format='array_record').download_and_prepare()\"")
    try:
        builder = tfds.builder(full, data_dir=data_dir, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"TFDS cannot open {full!r} ({reason}); check its name, or prepare it with: "
                        f"{command}") from error
    if not Path(builder.data_path).is_dir():
        raise UserError(f"the TFDS data set {full!r} is not prepared at {str(builder.data_path)!r}; prepare it with: "
                        f"{command}")
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise UserError(f"the TFDS data set at {str(builder.data_path)!r} is stored as "
                        f"{getattr(file_format, 'value', 'unknown')}, which cannot be read at random; prepare it anew "
                        f"with: {command}")
    return builder


def _find_keys(builder: Any, image: str, label: str | None, mask: str | None) -> dict[str, str]:
    features = builder.info.features
    if image not in features:
        raise unknown("image_key", image, list(features), f"the TFDS data set {builder.info.full_name!r}")
    keys = {"image": image}
    if label is None:
        classes = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
        label = "label" if "label" in classes else (classes[0] if len(classes) == 1 else None)
    if mask is None:
        mask = next((key for key in ("mask", "segmentation_mask") if key in features), None)
    for kind, key in (("label", label), ("mask", mask)):
        if key is not None:
            if key not in features:
                raise unknown(f"{kind}_key", key, list(features), f"the TFDS data set {builder.info.full_name!r}")
            keys[kind] = key
    return keys
