"""Augmentations inside the compiled step: one example at a time, vmapped over the batch.

Each takes `image` float32 [H,W,C] in [0, 1], `mask` int32 [H,W] or None, and the example's own key, and returns the
new pair in the same shapes. Geometry moves masks too, by the nearest pixel. Shifts, zooms and crops are products with
two small matrices, because a gather per pixel is slow on a CPU; only rotation gathers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from transfer_jax.data.augment import geometry

Pair = tuple[jax.Array, jax.Array | None]


def random_resized_crop(image: jax.Array, mask: jax.Array | None, key: jax.Array, *,
                        scale: tuple[float, float] = (0.08, 1.0),
                        ratio: tuple[float, float] = (0.75, 4 / 3)) -> Pair:
    """A window of random area and aspect (Szegedy et al. 2015), stretched to the image's size."""
    height, width = image.shape[:2]
    u = jax.random.uniform(key, (4,))
    top, left, tall, wide = geometry.crop_window(u, height, width, scale, ratio, jnp)
    rows = top + (jnp.arange(height) + 0.5) * (tall / height) - 0.5
    columns = left + (jnp.arange(width) + 0.5) * (wide / width) - 0.5
    # Beyond the window's edge the edge repeats, as when the window is cut out before it is enlarged.
    rows = jnp.clip(rows, top, top + tall - 1)
    columns = jnp.clip(columns, left, left + wide - 1)
    return _resample(image, mask, rows, columns, 0.0, 0)


def crop(image: jax.Array, mask: jax.Array | None, key: jax.Array, *, padding: int = 4, fill: float = 0.0,
         mask_fill: int = 0) -> Pair:
    """Pads by `padding` pixels of `fill` on all sides and cuts a random window of the old size (He et al. 2016)."""
    height, width = image.shape[:2]
    offset = geometry.shift(jax.random.uniform(key, (2,)), padding, jnp) - padding
    return _resample(image, mask, jnp.arange(height) + offset[0], jnp.arange(width) + offset[1], fill, mask_fill)


def flip(image: jax.Array, mask: jax.Array | None, key: jax.Array, *, probability: float = 0.5,
         pairs: tuple[tuple[str, str], ...] = ()) -> Pair:
    """Mirrors left and right; `pairs` names keypoints that then change places, (("left eye", "right eye"),)."""
    turn = jax.random.uniform(key) < probability
    image = jnp.where(turn, image[:, ::-1], image)
    return image, None if mask is None else jnp.where(turn, mask[:, ::-1], mask)


def scale(image: jax.Array, mask: jax.Array | None, key: jax.Array, *, low: float = 0.8, high: float = 1.2,
          fill: float = 0.0, mask_fill: int = 0) -> Pair:
    """Enlarges about the centre by a factor uniform in [low, high]; what comes in from outside is `fill`."""
    height, width = image.shape[:2]
    factor = geometry.between(jax.random.uniform(key), low, high)
    rows = (jnp.arange(height) - (height - 1) / 2) / factor + (height - 1) / 2
    columns = (jnp.arange(width) - (width - 1) / 2) / factor + (width - 1) / 2
    return _resample(image, mask, rows, columns, fill, mask_fill)


def rotation(image: jax.Array, mask: jax.Array | None, key: jax.Array, *, degrees: float = 15.0, fill: float = 0.0,
             mask_fill: int = 0) -> Pair:
    """Turns about the centre by an angle uniform in [-degrees, degrees], counter-clockwise, bilinear."""
    height, width = image.shape[:2]
    angle = jnp.deg2rad(geometry.between(jax.random.uniform(key), -degrees, degrees))
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None] - (width - 1) / 2
    rows = jnp.cos(angle) * y + jnp.sin(angle) * x + (height - 1) / 2
    columns = -jnp.sin(angle) * y + jnp.cos(angle) * x + (width - 1) / 2
    turned = _bilinear(image, rows, columns, fill)
    if mask is None:
        return turned, None
    return turned, _nearest(mask, jnp.rint(rows), jnp.rint(columns), mask_fill)


def colour_jitter(image: jax.Array, mask: jax.Array | None, key: jax.Array, *, brightness: float = 0.4,
                  contrast: float = 0.4, saturation: float = 0.4) -> Pair:
    """Brightness, contrast and saturation times factors uniform in 1 -+ the given amounts, in this order, clipped."""
    factors = geometry.between(jax.random.uniform(key, (3,)), -1.0, 1.0)
    image = jnp.clip(image * (1 + factors[0] * brightness), 0, 1)
    mean = _luminance(image).mean()
    image = jnp.clip(mean + (image - mean) * (1 + factors[1] * contrast), 0, 1)
    grey = _luminance(image)
    return jnp.clip(grey + (image - grey) * (1 + factors[2] * saturation), 0, 1), mask


def noise(image: jax.Array, mask: jax.Array | None, key: jax.Array, *, std: float = 0.05) -> Pair:
    """Adds independent Gaussian noise to every value, clipped to [0, 1]."""
    return jnp.clip(image + std * jax.random.normal(key, image.shape), 0, 1), mask


def cutout(image: jax.Array, mask: jax.Array | None, key: jax.Array, *, size: float = 0.5, fill: float = 0.5) -> Pair:
    """Fills a square of side `size` times the shorter side around a random centre (DeVries & Taylor 2017).

    The mask keeps what is hidden."""
    height, width = image.shape[:2]
    side = round(size * min(height, width))
    top, bottom, left, right = geometry.hole(jax.random.uniform(key, (2,)), height, width, side, side, jnp)
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return jnp.where(inside, fill, image), mask


def _luminance(image: jax.Array) -> jax.Array:
    """[H,W,C] -> [H,W,1]: ITU-R 601 of RGB; grey as it is."""
    if image.shape[-1] != 3:
        return image
    # Written out: on a CPU a reduction over three channels is slower than the rest of the augmentation.
    return 0.299 * image[..., 0:1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:3]


def _resample(image: jax.Array, mask: jax.Array | None, rows: jax.Array, columns: jax.Array, fill: float,
              mask_fill: int) -> Pair:
    """Bilinear values at rows x columns (floating pixel coordinates), `fill` outside; the mask at nearest pixels."""
    across, down = _weights(rows, image.shape[0]), _weights(columns, image.shape[1])
    moved = jnp.einsum("hy,yxc,wx->hwc", across, image - fill, down, precision="highest") + fill
    if mask is None:
        return moved, None
    return moved, _nearest(mask, jnp.rint(rows)[:, None], jnp.rint(columns)[None], mask_fill)


def _weights(places: jax.Array, size: int) -> jax.Array:
    """[outputs, size]: linear interpolation weights; rows sum to less than 1 only outside the image."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(places[:, None] - jnp.arange(size)))


def _nearest(array: jax.Array, rows: jax.Array, columns: jax.Array, fill: Any) -> jax.Array:
    """array [H,W,...] at whole-numbered float coordinates (broadcast), `fill` outside."""
    height, width = array.shape[:2]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    picked = array[jnp.clip(rows, 0, height - 1).astype(jnp.int32), jnp.clip(columns, 0, width - 1).astype(jnp.int32)]
    return jnp.where(inside.reshape(inside.shape + (1,) * (array.ndim - 2)), picked, jnp.asarray(fill, array.dtype))


def _bilinear(image: jax.Array, rows: jax.Array, columns: jax.Array, fill: float) -> jax.Array:
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    upper = _nearest(image, top, left, fill) * (1 - right) + _nearest(image, top, left + 1, fill) * right
    lower = _nearest(image, top + 1, left, fill) * (1 - right) + _nearest(image, top + 1, left + 1, fill) * right
    return upper * (1 - down) + lower * down
