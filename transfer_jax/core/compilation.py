"""How programs are compiled: with the settings that measured fastest, and kept for the next run."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

# XLA:CPU gives parts of a program to a library of kernels. Its convolutions keep only some of the cores busy, so that a
# training step of ResNet-18 on two cores takes half as long again; its products and sums are as fast or faster.
CPU_SETTINGS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def compiled(function: Callable, donate_argnums: int | Sequence[int] = (), out_shardings: Any = None) -> Callable:
    """`jax.jit` with our settings of the compiler, for programs that no other program calls.

    out_shardings: where the results lie, as for `jax.jit`; None leaves it to the compiler.
    """
    return jax.jit(function, donate_argnums=donate_argnums, out_shardings=out_shardings,
                   compiler_options=dict(compiler_settings()))


@functools.cache
def compiler_settings() -> dict[str, Any]:
    """Options of the compiler for the backend in use; none where this version of it does not know them."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=CPU_SETTINGS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return CPU_SETTINGS


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
