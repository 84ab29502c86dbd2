"""How points move with their image: [K, 3], x and y in units of the image, visibility. A point is a box without area,
so all but the mirror are those of `boxes.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from transfer_jax.data.augment import boxes


def flip(points: Any, draw: boxes.Draw, size: boxes.Size, xp: ModuleType, *, probability: float = 0.5,
         order: tuple[int, ...] | None = None) -> Any:
    """Mirrored left and right; point i then is what point order[i] was."""
    turned = xp.stack([1 - points[:, 0], points[:, 1], points[:, 2]], -1)
    turned = turned if order is None else turned[xp.asarray(order)]
    return xp.where(draw(()) < probability, turned, points)


def _as_boxes(move: Callable) -> Callable:
    def moved(points: Any, draw: boxes.Draw, size: boxes.Size, xp: ModuleType, **arguments: Any) -> Any:
        x, y, seen = points[:, 0], points[:, 1], points[:, 2]
        found = move(xp.stack([y, x, y, x, seen], -1), draw, size, xp, **arguments)
        return xp.stack([found[:, 1], found[:, 0], found[:, 4]], -1)

    return functools.wraps(move)(moved)


MOVES = {**{kind: _as_boxes(move) for kind, move in boxes.MOVES.items()}, "flip": flip}


def cut(points: Any, xp: ModuleType) -> Any:
    """Points beyond the border become unknown, like those that were."""
    inside = (points[:, :2] >= 0).all(-1) & (points[:, :2] <= 1).all(-1) & (points[:, 2] > 0)
    return xp.where(inside[:, None], points, 0).astype(xp.float32)


def exchanged(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """The order in which the points stand after left and right have changed places."""
    other = {**{one: two for one, two in pairs}, **{two: one for one, two in pairs}}
    return tuple(names.index(other.get(name, name)) for name in names)
