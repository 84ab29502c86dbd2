"""Learned positions of another image or window size, as the source of the parameters resizes them.

Each method works along rows, then along columns, with one matrix of weights for each; all are exact in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from transfer_jax.core.errors import UserError

Array = np.ndarray
TORCH_CUBIC, SHARP_CUBIC = -0.75, -0.5  # the free parameter of the cubic kernel (Keys 1981, eq. 4)


def bicubic(theirs: Array, shape: tuple[int, ...]) -> Array:
    """[h, w, D] -> shape [H, W, D], as transformers does it, and the authors of Swin for tables of window positions."""
    return _resize(theirs, shape, _bicubic)


def bicubic_antialias(theirs: Array, shape: tuple[int, ...]) -> Array:
    """[h, w, D] -> shape [H, W, D], as timm does it: when shrinking, the kernel grows with the distance of the rows."""
    return _resize(theirs, shape, _bicubic_antialias)


def bicubic_align_corners(theirs: Array, shape: tuple[int, ...]) -> Array:
    """[h, w, D] -> shape [H, W, D], as torchvision does it: first and last rows stay where they are."""
    return _resize(theirs, shape, functools.partial(_bicubic, align_corners=True))


def bilinear_align_corners(theirs: Array, shape: tuple[int, ...]) -> Array:
    """[h, w, D] -> shape [H, W, D], as vit_jax and big_vision do it (SciPy's zoom of order 1)."""
    return _resize(theirs, shape, _bilinear_align_corners)


def bilinear_geometric(theirs: Array, shape: tuple[int, ...]) -> Array:
    """[h, w, D] -> shape [H, W, D] for tables of relative positions, as timm does it (after Bao et al. 2021, BEiT).

    The distances of theirs from the centre grow like a geometric series that reaches as far as ours.
    """
    return _resize(theirs, shape, _bilinear_geometric)


def of_square(resize: Callable[..., Array], tokens: int) -> Callable[..., Array]:
    """`resize` for rows without their grid [tokens + n * n, D], the first of which belong to tokens in front."""
    @functools.wraps(resize)
    def resize_rows(theirs: Array, shape: tuple[int, ...]) -> Array:
        sides = [math.isqrt(rows - tokens) for rows in (len(theirs), shape[0])]
        for side, rows in zip(sides, (len(theirs), shape[0]), strict=True):
            if side * side + tokens != rows:
                raise UserError(f"{rows - tokens} positions of patches are no square, so that their grid is not known; "
                                f"use images as high as they are wide")
        grid = resize(theirs[tokens:].reshape(sides[0], sides[0], -1), (sides[1], sides[1], shape[-1]))
        return np.concatenate([theirs[:tokens], grid.reshape(-1, shape[-1])])

    return resize_rows


def _resize(theirs: Array, shape: tuple[int, ...], weights: Callable[[int, int], Array]) -> Array:
    grid = _grid(theirs, shape)
    if grid.shape == shape:
        return grid
    rows, columns = (weights(old, new) for old, new in zip(grid.shape[:2], shape[:2], strict=True))
    return np.einsum("ih,jw,hwd->ijd", rows, columns, grid.astype(np.float64), optimize=True).astype(np.float32)


def _grid(theirs: Array, shape: tuple[int, ...]) -> Array:
    """Theirs as a grid; flat rows are those of a grid that is no square, which must be our own."""
    if theirs.shape[-1] != shape[-1]:
        raise UserError(f"positions have {theirs.shape[-1]} channels, but the model {shape[-1]}; choose the size of "
                        f"model that the source has")
    if theirs.ndim == 3:
        return theirs
    if len(theirs) != shape[0] * shape[1]:
        raise UserError(f"the source has positions for {len(theirs)} patches, which is neither a square nor the "
                        f"model's grid of {shape[0]} x {shape[1]}; give the image size that the source was made for")
    return theirs.reshape(shape)


def _bicubic(old: int, new: int, align_corners: bool = False) -> Array:
    """Weights [new, old] over the four nearest rows; those beyond the border are the border's."""
    places = _aligned(old, new) if align_corners else (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(places).astype(int)
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        row = first + offset
        np.add.at(weights, (np.arange(new), row.clip(0, old - 1)), _cubic(places - row, TORCH_CUBIC))
    return weights


def _bicubic_antialias(old: int, new: int) -> Array:
    """Weights [new, old] of a kernel as wide as the larger spacing; beyond the border there is nothing."""
    ratio = old / new
    spacing = max(ratio, 1.0)
    centers = (np.arange(new) + 0.5) * ratio
    rows = np.arange(old) + 0.5
    weights = _cubic((rows - centers[:, None]) / spacing, SHARP_CUBIC)
    return weights / weights.sum(1, keepdims=True)


def _bilinear_align_corners(old: int, new: int) -> Array:
    return _between(np.arange(old, dtype=float), _aligned(old, new))


def _bilinear_geometric(old: int, new: int) -> Array:
    steps = np.concatenate([[0.0], np.cumsum(_growth(old, new) ** np.arange(old // 2))])
    return _between(np.concatenate([-steps[:0:-1], steps]), np.arange(new) - new // 2)


def _growth(old: int, new: int) -> float:
    """The ratio for which old // 2 steps 1, q, q^2 ... together reach new // 2, by bisection as in the original."""
    low, middle, high = 1.01, 1.01, 1.5
    while high - low > 1e-6:
        middle = (low + high) / 2
        if (1 - middle ** (old // 2)) / (1 - middle) > new // 2:
            high = middle
        else:
            low = middle
    return middle


def _aligned(old: int, new: int) -> Array:
    """Places of new rows among the old ones if both ends coincide."""
    return np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)


def _between(places: Array, wanted: Array) -> Array:
    """Weights [wanted, places] of the linear interpolation; beyond the ends it is the last place's."""
    if len(places) == 1:
        return np.ones((len(wanted), 1))
    right = np.searchsorted(places, wanted).clip(1, len(places) - 1)
    share = ((wanted - places[right - 1]) / (places[right] - places[right - 1])).clip(0, 1)
    weights = np.zeros((len(wanted), len(places)))
    weights[np.arange(len(wanted)), right - 1] = 1 - share
    weights[np.arange(len(wanted)), right] = share
    return weights


def _cubic(distance: Array, a: float) -> Array:
    """The cubic convolution kernel of radius 2 (Keys 1981)."""
    x = np.abs(distance)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))
