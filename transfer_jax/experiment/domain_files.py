"""Features of a domain from a file: `.npz`, MATLAB `.mat` (version 5), or a folder that `embed` has made."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.feature_files import MANIFEST, Features

FEATURE_NAMES = ("x", "features", "fts", "feas", "X")
LABEL_NAMES = ("y", "labels", "label", "Y")


@dataclass(frozen=True)
class Domain:
    """One domain.

    Attributes:
        x: float64 [n, d].
        y: [n] names or numbers, None where the file has no labels.
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None


def read_domain(path: str | Path) -> Domain:
    """The domain in a file or folder, called by its name."""
    path = Path(path)
    if path.is_dir():
        return _embedded(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a .npz or .mat file of features, or a folder that embed has made")
    readers = {".npz": _npz, ".mat": _mat}
    if path.suffix not in readers:
        raise UserError(f"{path} is no file of features; expected .npz, .mat or a folder that embed has made")
    found = readers[path.suffix](path)
    x = _one_of(found, FEATURE_NAMES)
    if x is None:
        raise UserError(f"{path} has no array called {', '.join(FEATURE_NAMES[:-1])} or {FEATURE_NAMES[-1]}, but "
                        f"{', '.join(sorted(found)) or 'nothing'}; rename the features in it")
    if x.dtype.kind not in "fiub":
        raise UserError(f"the features in {path} are of type {x.dtype}; give numbers")
    y = _one_of(found, LABEL_NAMES)
    return Domain(path.stem, np.asarray(x, np.float64), None if y is None else _labels(y))


def read_folder(folder: str | Path) -> list[Domain]:
    """Every file of features and every folder that `embed` has made inside a folder, by name."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist; name one with a file of features for each domain")
    found = [read_domain(path) for path in sorted(folder.iterdir())
             if path.suffix in (".npz", ".mat") or (path / MANIFEST).is_file()]
    if len(found) < 2:
        raise UserError(f"{folder} holds {len(found)} domains; pairs need two or more: .npz or .mat files of features "
                        f"or folders that embed has made")
    return found


def _embedded(path: Path) -> Domain:
    features = Features(path)
    y = None
    if features.manifest["labelled"]:
        y = np.array(features.class_names)[features.y] if features.class_names else features.y
    return Domain(path.name, np.asarray(features.x, np.float64), y)


def _npz(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz ({error}); write it with numpy.savez") from error


def _mat(path: Path) -> Mapping[str, np.ndarray]:
    try:
        return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{path} cannot be read as a MATLAB file of version 5 ({error}); save it with -v7 or as "
                        f".npz") from error


def _labels(y: np.ndarray) -> np.ndarray:
    """[n]; MATLAB has names in cells, or padded with blanks."""
    if y.dtype.kind == "O":
        y = np.array([str(np.ravel(cell)[0]) for cell in y.reshape(-1)])
    return np.char.strip(y.reshape(-1)) if y.dtype.kind == "U" else y.reshape(-1)


def _one_of(found: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    return next((found[name] for name in names if name in found), None)
