"""Options of XLA:CPU with which programs that run once or twice compile quickly, as far as this version knows them."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax

# The emitters of fusions take longer to compile than all the rest, whatever the level of optimisation; and a program is
# cut into up to 32 parts, each with a compiler of its own: for programs as small as ours half of the time.
WANTED = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


@functools.cache
def quick_to_compile() -> dict[str, Any]:
    """Those that the compiler knows: other versions of it end with an error."""
    found = {}
    for name, value in WANTED.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
            found[name] = value
    return found
