"""Standard digit data sets in the file formats in which they are published: MNIST (idx), USPS, MNIST-M."""

from __future__ import annotations

import functools
import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data.dataset import ArrayDataset, Dataset, View
from transfer_jax.data.decoding import decode_image
from transfer_jax.data.sources.locations import need_file, standard_folder

DIGITS = tuple("0123456789")
_MNISTM_ROWS = 7000  # of the published test part, used as training rows where the training part is absent


def idx_source(*, folder: str | None = None, class_names: tuple[str, ...] = DIGITS) -> dict[str, Dataset]:
    """MNIST and its relatives: four idx files (LeCun), plain or .gz. Splits train and test, uint8 [n,28,28,1].

    Without `folder`, MNIST from the folder of standard data sets.
    """
    place = standard_folder("mnist", folder)
    splits: dict[str, Dataset] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(need_file(place, f"{prefix}-images-idx3-ubyte", f"{prefix}-images-idx3-ubyte.gz"))
        labels = read_idx(need_file(place, f"{prefix}-labels-idx1-ubyte", f"{prefix}-labels-idx1-ubyte.gz"))
        if len(images) != len(labels) or images.ndim != 3 or labels.ndim != 1:
            raise UserError(f"the {split} files in {str(place)!r} do not belong together: images {images.shape}, "
                            f"labels {labels.shape}; replace them")
        if int(labels.max(initial=0)) >= len(class_names):
            raise UserError(f"the {split} labels in {str(place)!r} reach {labels.max()}, but there are "
                            f"{len(class_names)} class_names; name them all")
        splits[split] = ArrayDataset(images, labels, class_names, origin=f"{place.name} {split}")
    return splits


def read_idx(file: Path) -> np.ndarray:
    """An idx file of unsigned bytes (optionally gzipped) as uint8 with the shape that its header tells."""
    try:
        data = file.read_bytes()
        if file.suffix == ".gz":
            data = gzip.decompress(data)
        kind, axes = struct.unpack(">HBB", data[:4])[1:]
        shape = struct.unpack(f">{axes}I", data[4:4 + 4 * axes])
        if kind != 8:
            raise ValueError(f"its element type is {kind}, not unsigned bytes (8)")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{str(file)!r} is no whole idx file ({error}); fetch it again") from error


def usps_source(*, folder: str | None = None) -> dict[str, Dataset]:
    """USPS digits (Hull 1994), 16x16 grey: 7,291 train and 2,007 test; grey values -1..1 become 0..255.

    Reads `usps.npz` (x_train_milli, y_train ...: thousandths) or the text files zip.train and zip.test [.gz] of
    "The Elements of Statistical Learning" (one line per digit: class, then 256 values).
    """
    place = standard_folder("usps", folder)
    splits: dict[str, Dataset] = {}
    for split in ("train", "test"):
        file = need_file(place, "usps.npz", f"zip.{split}", f"zip.{split}.gz")
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                values, labels = archive[f"x_{split}_milli"] / 1000.0, archive[f"y_{split}"]
        else:
            table = np.loadtxt(file, dtype=np.float32)
            values, labels = table[:, 1:].reshape(-1, 16, 16), table[:, 0].astype(np.int32)
        images = np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8)
        splits[split] = ArrayDataset(images, labels, DIGITS, origin=f"usps {split}")
    return splits


class _PngRows(Dataset):
    """PNG files of one folder or archive, with labels."""

    def __init__(self, names: list[str], labels: np.ndarray, read: Callable[[str], bytes]):
        self._names, self._read = names, read
        self.labels, self.class_names = labels, DIGITS

    def __len__(self) -> int:
        return len(self._names)

    def load(self, row: int) -> dict:
        return {"image": decode_image(self._read(self._names[row]), self.name_of(row)), "label": int(self.labels[row])}

    def name_of(self, row: int) -> str:
        return f"MNIST-M {self._names[row]}"


def mnistm_source(*, folder: str | None = None) -> dict[str, Dataset]:
    """MNIST-M (Ganin & Lempitsky 2015), 32x32 RGB: PNG files in a folder or .zip, and a list `name class` per line.

    Where the published training part is absent, rows 0..6999 of the test part are `train` and the rest is `test`.
    """
    place = standard_folder("mnistm", folder)
    test = _mnistm_part(place, "test")
    if (place / "mnist_m_train_labels.txt").is_file():
        return {"train": _mnistm_part(place, "train"), "test": test}
    return {"train": View(test, np.arange(_MNISTM_ROWS)), "test": View(test, np.arange(_MNISTM_ROWS, len(test)))}


def _read_file(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def _mnistm_part(place: Path, split: str) -> Dataset:
    lines = need_file(place, f"mnist_m_{split}_labels.txt").read_text().split()
    names, labels = lines[::2], np.array(lines[1::2], np.int32)
    inside = place / f"mnist_m_{split}"
    if inside.is_dir():
        return _PngRows(names, labels, functools.partial(_read_file, inside))
    # The whole archive is held in memory: a ZipFile on disk is one file position shared by all reading threads.
    with zipfile.ZipFile(need_file(place, f"mnist_m_{split}.zip")) as archive:
        files = {Path(item).name: archive.read(item) for item in archive.namelist()}
    return _PngRows(names, labels, files.__getitem__)
