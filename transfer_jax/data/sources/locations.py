"""Where data lie: the folder of standard data sets, and our own cache."""

from __future__ import annotations

import os
from pathlib import Path

from transfer_jax.core.errors import UserError

DATA_VARIABLE = "TRANSFER_JAX_DATA"
CACHE_VARIABLE = "TRANSFER_JAX_CACHE"


def cache_dir() -> Path:
    """The folder for prepared data: $TRANSFER_JAX_CACHE or ~/.cache/transfer_jax."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "transfer_jax").expanduser()


def standard_folder(name: str, folder: str | None) -> Path:
    """`folder` if given, else the folder `datasets/name` of $TRANSFER_JAX_DATA; it must exist."""
    if folder is not None:
        found = Path(folder).expanduser()
        if not found.is_dir():
            raise UserError(f"the folder {folder!r} of the data set {name!r} does not exist; correct `folder`")
        return found
    found = Path(os.environ.get(DATA_VARIABLE) or "../shared/data").expanduser() / "datasets" / name
    if not found.is_dir():
        raise UserError(f"the data set {name!r} is not at {str(found)!r}; set the environment variable {DATA_VARIABLE} "
                        f"to the folder that holds datasets/{name}, or give `folder`")
    return found


def need_file(folder: Path, *names: str) -> Path:
    """The first of `names` that exists in `folder`."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"the folder {str(folder)!r} holds none of the files {', '.join(names)}; complete it or give "
                    "another `folder`")
