"""Models of transformers by their own files: names in memory may differ from those on disk, which users have."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.pretrained.formats import read_tensors, write_tensors

FILE = "model.safetensors"


def load(model: Any, tensors: dict[str, np.ndarray], **arguments: Any) -> None:
    """Writes a folder as it is published and lets transformers read it: nothing may be missing or left over.

    arguments: of the model's class, besides its configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        write_tensors(Path(folder) / FILE, tensors, {"format": "pt"})
        loaded, account = type(model).from_pretrained(folder, output_loading_info=True, **arguments)
    told = {what: names for what, names in account.items() if names}
    assert not told, f"transformers says of our file: {told}"
    model.load_state_dict(loaded.state_dict(), strict=True)


def save(model: Any) -> dict[str, np.ndarray]:
    """The tensors of the file that transformers writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return read_tensors(Path(folder) / FILE).tensors
