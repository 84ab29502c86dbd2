"""The user's own images with maps: folders of images beside folders of depths, normals or masks of the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.labels import VOID
from transfer_jax.data.dataset import Dataset, FileDataset
from transfer_jax.data.decoding import UnreadableImage, open_image
from transfer_jax.data.sources.folders import SPLIT_NAMES, SUFFIXES

MAPS = (".npy", ".png", ".tif", ".tiff")
SHOWN = 3  # names in a message


class PairedFiles(FileDataset):
    """Image files with a mask, a depth and normals each, as far as there are some: files of MAPS."""

    def __init__(self, paths: Sequence[Path], maps: Mapping[str, Sequence[Path]], depth_unit: float,
                 mask_classes: tuple[str, ...]):
        super().__init__(paths, None, mask_classes, maps.get("mask"))
        self._maps, self._unit = {kind: files for kind, files in maps.items() if kind != "mask"}, depth_unit

    def load(self, row: int) -> dict[str, Any]:
        example = super().load(row)
        if "mask" in example:
            _check_classes(example["mask"], len(self.class_names), self._mask_paths[row])
        for kind, files in self._maps.items():
            example[kind] = read_depth(files[row], self._unit) if kind == "depth" else read_normals(files[row])
        return example


def pairs_source(*, path: str, images: str = "images", masks: str | None = None, depth: str | None = None,
                 normals: str | None = None, depth_unit: float = 0.001,
                 mask_classes: tuple[str, ...] = ()) -> dict[str, Dataset]:
    """`path/images/NAME.jpg` beside `path/depth/NAME.png` and so on, one split 'train'; or the same in `path/train`,
    `path/val`, `path/test`.

    Args:
        images, masks, depth, normals: names of the folders; those of maps that there are.
        depth_unit: what one step of a depth stored as whole numbers (16-bit PNG) is; 0 is not known. Depths in .npy
            files of floats are taken as they are.
        mask_classes: names of the classes of masks, whose pixels are their numbers or 255, void.

    Normals are .npy files [H, W, 3], or RGB images with (n + 1) / 2 * 255, black where nobody knows.

    Raises:
      UserError: naming the folder that is missing, or the images and maps without a partner.
    """
    root = Path(path).expanduser()
    folders = {kind: name for kind, name in (("mask", masks), ("depth", depth), ("normals", normals)) if name}
    if not folders:
        raise UserError("data of kind 'pairs' need a folder of maps: give `masks`, `depth` or `normals`")
    if masks and not mask_classes:
        raise UserError("data of kind 'pairs' with masks need `mask_classes`, the names of their numbers")
    if not depth_unit > 0:
        raise UserError(f"data of kind 'pairs': depth_unit={depth_unit} must be positive")
    splits = {name: root / name for name in SPLIT_NAMES if (root / name / images).is_dir()} or {"train": root}
    return {split: _part(place, images, folders, depth_unit, mask_classes) for split, place in splits.items()}


def _part(place: Path, images: str, folders: Mapping[str, str], depth_unit: float,
          mask_classes: tuple[str, ...]) -> Dataset:
    pictures = _by_name(place / images, SUFFIXES)
    maps = {}
    for kind, name in folders.items():
        found = _by_name(place / name, MAPS)
        for what, missing in ((f"{images} have no partner in {name}", pictures.keys() - found.keys()),
                              (f"{name} have no partner in {images}", found.keys() - pictures.keys())):
            if missing:
                shown = ", ".join(sorted(missing)[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
                raise UserError(f"{len(missing)} files of {str(place)!r}: {what} ({shown}); complete or remove them")
        maps[kind] = [found[stem] for stem in pictures]
    return PairedFiles(list(pictures.values()), maps, depth_unit, mask_classes)


def _by_name(folder: Path, suffixes: Sequence[str] | set[str]) -> dict[str, Path]:
    """Name without suffix -> file, sorted."""
    if not folder.is_dir():
        raise UserError(f"the folder {str(folder)!r} does not exist; correct `path` or the name of the folder")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in suffixes or not file.is_file():
            continue
        if file.stem in found:
            raise UserError(f"{str(folder)!r} holds {found[file.stem].name!r} and {file.name!r}, which have one name; "
                            f"remove one")
        found[file.stem] = file
    if not found:
        raise UserError(f"the folder {str(folder)!r} holds no file ({', '.join(sorted(suffixes))}); fill it or correct "
                        f"its name")
    return found


def read_depth(file: Path, unit: float) -> np.ndarray:
    """float32 [H, W]: whole numbers times `unit`, or floats as they are."""
    values = _read_array(file)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2:
        raise UnreadableImage(f"the depth {str(file)!r} has the shape {list(values.shape)}; store one number a pixel")
    return values.astype(np.float32) * (1 if values.dtype.kind == "f" else np.float32(unit))


def read_normals(file: Path) -> np.ndarray:
    """float32 [H, W, 3]; 0 where nobody knows."""
    values = _read_array(file)
    if values.ndim != 3 or values.shape[-1] != 3:
        raise UnreadableImage(f"the normals {str(file)!r} have the shape {list(values.shape)}; store x, y and z of a "
                              f"pixel, as .npy or RGB")
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    known = values.any(-1, keepdims=True)
    return np.where(known, values.astype(np.float32) / np.float32(127.5) - 1, 0).astype(np.float32)


def _read_array(file: Path) -> np.ndarray:
    """The numbers of a .npy file or of an image, as they are stored."""
    if file.suffix.lower() == ".npy":
        try:
            values = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UnreadableImage(f"{str(file)!r} is no readable .npy file ({error}); mend or remove it") from error
        if values.dtype.kind not in "iuf":
            raise UnreadableImage(f"{str(file)!r} holds {values.dtype} and no numbers; mend or remove it")
        return values
    image = open_image(file)
    return np.asarray(image.convert("RGB") if image.mode in ("P", "RGBA") else image)


def _check_classes(mask: np.ndarray, classes: int, file: Path) -> None:
    found = np.unique(mask)
    wrong = found[(found != VOID) & (found >= classes)]
    if len(wrong):
        raise UnreadableImage(f"the mask {str(file)!r} has the class {wrong[0]}, but the classes are 0 ... "
                              f"{classes - 1} and {VOID}, void; mend it or name more classes")
