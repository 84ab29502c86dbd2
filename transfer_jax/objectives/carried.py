"""What terms carry from step to step, as it is at a stage's start.

Such a term takes it as `carried` and returns (value, metrics, carried). It lies in checkpoints, for every seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Kind of term -> function of (some of) the term's own options that returns a tree of arrays. An option `size` is the
# number of examples of the term's largest stream.
CARRIED: dict[str, Callable[..., Any]] = {}
