"""The smallest images that a network can take: asked for at its entry, before a map becomes empty somewhere inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from transfer_jax.core.errors import UserError
from transfer_jax.models.taps import Resumed


def require_size(x: jax.Array | Resumed, least: Mapping[str, int], tap_names: Sequence[str], until: str | None,
                 network: str) -> None:
    """Raises UserError if the images [B, H, W, C] are too small; what is resumed at a tap was asked at its entry.

    Args:
        least: least side of an image in pixels so that the tap is not empty; a tap that is not named needs no more
            than those before it.
        tap_names, until: of the backbone; taps behind `until` ask for nothing.
    """
    if isinstance(x, Resumed):
        return
    built = tap_names[:tap_names.index(until) + 1] if until in tap_names else tap_names
    side = max(least.get(tap, 1) for tap in built)
    height, width = x.shape[1:3]
    if min(height, width) < side:
        part = f" up to {until!r}" if until is not None else ""
        raise UserError(f"images of {height} x {width} pixels are too small for {network}{part}; use at least "
                        f"{side} x {side}, or cut the backbone earlier with 'until'")
