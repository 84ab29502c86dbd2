"""The persistent compilation cache: the second run of a program does not compile."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs in `folder` ("default": the user's cache, None: nowhere)."""
    if folder is None:
        return
    if folder == "default":
        root = os.environ.get("TRANSFER_JAX_CACHE", str(Path.home() / ".cache" / "transfer_jax"))
        folder = str(Path(root) / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
