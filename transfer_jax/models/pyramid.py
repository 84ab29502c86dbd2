"""Maps of a backbone from fine to coarse, and the feature pyramid on them (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.models.taps import Taps, find_tap

Size = tuple[int, int]
MOST_SPECIAL = 8  # tokens in front of those of the patches: class, distillation, registers


def fine_to_coarse(taps: Taps | jax.Array, names: Sequence[str], image_size: Size | None, head: str,
                   ) -> dict[str, jax.Array]:
    """The taps `names` as maps [B, h, w, C], in this order; a plain array in place of taps is the one map 'map'.

    Tokens [B, T, D] of a transformer are laid out as the grid of its patches, without the special ones in front.

    Raises:
      UserError: naming `head`, unless there is a name, all have spatial extent, and each map has fewer points than the
        one before.
    """
    if not isinstance(taps, Mapping):
        names = ("map",)
    if not names:
        raise UserError(f"the {head} head reads no tap; name one or more in 'taps', from fine to coarse")
    found = [as_map(find_tap(taps, name), name, image_size, head) for name in names]
    sizes = [value.shape[1] * value.shape[2] for value in found]
    if sorted(sizes, reverse=True) != sizes or len(set(sizes)) < len(sizes):
        raise UserError(f"the taps {', '.join(names)} of a {head} head must go from fine to coarse, their maps have "
                        f"{', '.join(map(str, sizes))} points; order them, or leave one out of equal ones")
    return dict(zip(names, found, strict=True))


def as_map(value: jax.Array, name: str, image_size: Size | None, head: str) -> jax.Array:
    """[B, h, w, C] as it is, and tokens [B, T, C] as the map of the patches that they stand for."""
    if value.ndim == 3 and image_size is not None:
        grid = _grid(value.shape[1], image_size)
        if grid is not None:
            return value[:, value.shape[1] - grid[0] * grid[1]:].reshape(value.shape[0], *grid, value.shape[2])
    if value.ndim != 4:
        raise UserError(f"the {head} head needs maps, but the tap {name!r} has shape {value.shape}; name taps in front "
                        f"of the pooling")
    return value


def _grid(tokens: int, image_size: Size) -> Size | None:
    """Rows and columns of square patches that so many tokens can stand for; None if no patch fits."""
    height, width = image_size
    for patch in range(1, min(image_size) + 1):
        if height % patch == width % patch == 0 and (height // patch) * (width // patch) <= tokens:
            grid = height // patch, width // patch
            return grid if tokens - grid[0] * grid[1] <= MOST_SPECIAL else None
    return None


def top_down(maps: Sequence[jax.Array], width: int, dtype: Any) -> list[jax.Array]:
    """Levels [B, h, w, width] of the sizes of `maps`, which go from fine to coarse.

    Each is the sum of the map's 1x1 convolution and the level above, enlarged by nearest neighbours, and then a 3x3
    convolution. Called inside a module, which gets the parameters `lateral0`, `smooth0` ..., finest first.
    """
    lateral = [Conv(width, 1, dtype=dtype, name=f"lateral{i}")(value) for i, value in enumerate(maps)]
    levels = lateral[-1:]
    for value in lateral[-2::-1]:
        levels.insert(0, value + jax.image.resize(levels[0], value.shape, "nearest"))
    return [Conv(width, 3, dtype=dtype, name=f"smooth{i}")(x) for i, x in enumerate(levels)]


def resize(x: jax.Array, size: Size) -> jax.Array:
    """[B, h, w, C] -> [B, *size, C] by bilinear interpolation with half-pixel centres."""
    if x.shape[1:3] == tuple(size):
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)
