"""The proof that a conversion lost nothing: there and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.models.taps import Backbone
from transfer_jax.pretrained.conversion import Leaves, find_layout, leaf_shapes, to_foreign, to_ours, unwrapped, whole


def check_round_trip(leaves: Leaves, backbone: Backbone, head: nn.Module | None, layout_name: str, example: Any,
                     given: Mapping[str, np.ndarray] | None = None) -> Leaves:
    """Writes `leaves` in a foreign layout, reads them again and compares every bit.

    Args:
        given: the foreign tensors that the leaves came from, if they came from this layout: those that are written
            must be the same, in the precision of the source.

    Returns:
        The written tensors. Raises UserError naming the first tensor that changed.
    """
    written = to_foreign(leaves, backbone, layout_name)
    back, report = to_ours(written, backbone, layout_name, head, example)
    report.check()
    changed = [path for path, leaf in leaves.items() if not same_bits(leaf, back[path])]
    if given is not None:
        layout = find_layout(backbone, layout_name)
        given = unwrapped(given, layout, leaf_shapes(whole(backbone)))
        changed += [name for name, leaf in written.items()
                    if name in given and not same_bits(leaf.astype(given[name].dtype), given[name])]
    if changed:
        raise UserError(f"the round trip through the layout {layout_name!r} changed {len(changed)} tensors, the first "
                        f"is {changed[0]!r}; this is a fault of the conversion table, please report it")
    return written


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in shape, dtype and every bit (NaNs too)."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
