"""The first kernel for another number of input channels: named ways."""

from __future__ import annotations

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import lookup


def summed(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Grey images: the answer to a grey image equals the old answer to it with its channel repeated."""
    if channels != 1:
        raise UserError(f"channels='sum' makes one input channel, not {channels}; use 'repeat' or 'mean'")
    return kernel.sum(-2, keepdims=True)


def repeated(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Channels are repeated in turn and scaled by old / new count, so that constant images keep their answer's size."""
    old = kernel.shape[-2]
    return kernel[..., np.arange(channels) % old, :] * np.float32(old / channels)


def averaged(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Every new channel gets the mean kernel, scaled by old / new count."""
    old = kernel.shape[-2]
    return np.repeat(kernel.mean(-2, keepdims=True), channels, -2) * np.float32(old / channels)


CHANNELS = {"sum": summed, "repeat": repeated, "mean": averaged}


def adapt_channels(kernel: np.ndarray, channels: int, method: str) -> np.ndarray:
    """[..., C, F] -> [..., channels, F] by the method `sum`, `repeat` or `mean`."""
    return lookup(CHANNELS, method, "way to adapt channels")(kernel, channels).astype(kernel.dtype)
