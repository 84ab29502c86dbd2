"""Auto-encoding: the image itself, as the network sees it, out of what a tap keeps of it. It needs no labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import ClassNames, TaskKind, mean_square_of_errors, predict_numbers
from transfer_jax.tasks.metric import Batch, State, count_of, mean_metric, present

LEAST_ERROR = 1e-10  # 100 dB: what is better counts as this


def one_per_channel(names: ClassNames) -> int:
    """As many outputs as the images have channels."""
    return len(names)


def _decibels(outputs: jax.Array, batch: Batch) -> State:
    """Peak signal-to-noise ratio of every image, -10 log10 of the mean squared error of pixels within [0, 1]."""
    images, std = batch["label"], batch.get("std", 1.0)
    if outputs.shape != images.shape:
        raise UserError(f"psnr needs outputs of the shape of the images, got {outputs.shape} for {images.shape}; take "
                        f"a head of kind 'decoder'")
    errors = jnp.mean(((outputs.astype(jnp.float32) - images) * std) ** 2, axis=(1, 2, 3))
    ratios = -10 * jnp.log10(jnp.maximum(errors, LEAST_ERROR))
    counted = present(images, batch)
    return {"sum": jnp.sum(jnp.where(counted, ratios, 0.0)), "count": count_of(counted)}


AUTO_ENCODING = TaskKind(
    label="image", loss=Component(kind="squared_error"), outputs=one_per_channel, predict=predict_numbers,
    metrics=("psnr", "mean_squared_error"), measures={"psnr": mean_metric(_decibels, "psnr", "max", counts=False)},
    error=mean_square_of_errors, reads=("std",), unlabelled=True, names="channel_names", answers="images")
