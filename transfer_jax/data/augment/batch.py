"""Augmentations that mix the examples of a batch. They run on the device for both kinds of stream, on the global batch.

So the partner of an example never depends on how the batch was spread over processes. Each takes the batch (images in
[0, 1]), a key and the number of classes, and returns the new batch; a labelled one gains `label_probs` float32 [B,K].
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from transfer_jax.data.augment import geometry

Batch = dict[str, Any]


def mixup(batch: Batch, key: jax.Array, classes: int, *, alpha: float = 0.2, probability: float = 1.0) -> Batch:
    """lambda x_i + (1 - lambda) x_j for images and labels, lambda ~ Beta(alpha, alpha) (Zhang et al. 2018)."""
    share = _shares(key, len(batch["image"]), alpha, probability)
    weight = share[:, None, None, None]
    image = weight * batch["image"] + (1 - weight) * _partner(batch["image"])
    return _mix_labels({**batch, "image": image}, share, classes)


def cutmix(batch: Batch, key: jax.Array, classes: int, *, alpha: float = 1.0, probability: float = 1.0) -> Batch:
    """A box of the partner's image replaces one's own; labels mix by area (Yun et al. 2019); masks are cut likewise."""
    count, height, width = batch["image"].shape[:3]
    key, place = jax.random.split(key)
    side = jnp.sqrt(1 - _shares(key, count, alpha, probability))
    edges = jax.vmap(lambda u, s: geometry.hole(u, height, width, s * height, s * width, jnp))(
        jax.random.uniform(place, (count, 2)), side)
    top, bottom, left, right = (edge[:, None, None] for edge in edges)
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    batch = {**batch, "image": jnp.where(inside[..., None], _partner(batch["image"]), batch["image"])}
    if "mask" in batch:
        batch["mask"] = jnp.where(inside, _partner(batch["mask"]), batch["mask"])
    return _mix_labels(batch, 1 - inside.mean((1, 2), dtype=jnp.float32), classes)


def _partner(array: jax.Array) -> jax.Array:
    """The neighbour in the batch: the order is random, so any fixed partner is a random one."""
    return jnp.roll(array, 1, axis=0)


def _shares(key: jax.Array, count: int, alpha: float, probability: float) -> jax.Array:
    """[count]: the share that each example keeps of itself."""
    draw, decide = jax.random.split(key)
    share = jnp.interp(jax.random.uniform(draw, (count,)), *_beta_quantiles(alpha))
    return jnp.where(jax.random.uniform(decide, (count,)) < probability, share, 1.0)


@functools.cache
def _beta_quantiles(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """4,097 points of the quantile function of Beta(alpha, alpha), to draw from by inversion: the sampler of
    jax.random loops until it accepts, which costs seconds to compile and stalls a compiled step."""
    points = np.linspace(0, 1, 4097)
    return points.astype(np.float32), special.betaincinv(alpha, alpha, points).astype(np.float32)


def _mix_labels(batch: Batch, share: jax.Array, classes: int) -> Batch:
    if "label" not in batch:
        return batch
    probs = batch.get("label_probs")
    probs = jax.nn.one_hot(batch["label"], classes, dtype=jnp.float32) if probs is None else probs
    return {**batch, "label_probs": share[:, None] * probs + (1 - share[:, None]) * _partner(probs)}
