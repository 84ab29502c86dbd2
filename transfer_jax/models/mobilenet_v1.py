"""MobileNet (Howard et al. 2017, "MobileNets: efficient convolutional neural networks for mobile vision")."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.image_size import require_size
from transfer_jax.models.inverted_residual import (
    ACTIVATIONS,
    ConvNorm,
    Form,
    find_form,
    least_sizes,
    pooled_with_dropout,
)
from transfer_jax.models.taps import Backbone, Taps, walk

STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))  # channels, blocks; all but the first halve the map
FORMS = {"keras": Form("end", 1e-3, 0.99, False), "pytorch": Form()}
STEM_PADDINGS = {"keras": "same", "pytorch": "half"}


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and 1x1 convolution, each with BatchNorm and activation.

    [B, H, W, C] -> [B, H / strides, W / strides, features].
    """

    features: int
    strides: int
    activation: str
    form: Form
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = ConvNorm(x.shape[-1], 3, self.strides, self.activation, self.form, self.dtype, depthwise=True,
                     name="depthwise")(x, train)
        return ConvNorm(self.features, 1, 1, self.activation, self.form, self.dtype, name="pointwise")(x, train)


class SeparableStage(nn.Module):
    """`blocks` separable convolutions, named `block0` ...; the first has the strides of the stage."""

    blocks: int
    features: int
    strides: int
    activation: str
    form: Form
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = rematerialized(SeparableBlock, self.remat)
        for i in range(self.blocks):
            x = block(self.features, self.strides if i == 0 else 1, self.activation, self.form, self.dtype,
                      name=f"block{i}")(x, train)
        return x


class MobileNetV1(Backbone):
    """MobileNet with `width` times the channels of the paper (rounded down).

    Taps: `stem` and `stage1` (1/2 of the image), `stage2` (1/4), `stage3` (1/8), `stage4` (1/16), `stage5` (1/32),
    `pooled` [B, 1024 * width].
    activation: 'relu6', 'relu' or 'leaky_relu' (slope 0.1).
    form: 'keras' (pads the end at strides of 2) or 'pytorch' (both sides equally); each with its BatchNorm.
    epsilon, momentum: of BatchNorm; None: those of the form.
    dropout: rate of `pooled`, needs the rng 'dropout' in training.
    """

    width: float = 1.0
    activation: str = "relu6"
    form: str = "keras"
    epsilon: float | None = None
    momentum: float | None = None
    dropout: float = 0.001

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i + 1}" for i in range(len(STAGES))), "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        form = find_form(FORMS, self.form, self.epsilon, self.momentum, "MobileNet v1")
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ("relu6", "relu", "leaky_relu"), "MobileNet v1")
        if 32 * self.width < 1:
            raise UserError(f"width={self.width} leaves MobileNet v1 without channels; use at least 1/32")
        stem_form = dataclasses.replace(form, padding=STEM_PADDINGS[self.form])
        halved = {"stem": stem_form.padding, **{f"stage{i}": form.padding for i in range(2, 6)}}
        require_size(x, least_sizes(halved), self.tap_names, self.until, "MobileNet v1")

        def stem(x: jax.Array) -> jax.Array:
            return ConvNorm(int(32 * self.width), 3, 2, self.activation, stem_form, self.dtype, name="stem")(x, train)

        def stage(i: int):
            channels, blocks = STAGES[i]
            return lambda x: SeparableStage(blocks, int(channels * self.width), 1 if i == 0 else 2, self.activation,
                                            form, self.remat, self.dtype, name=f"stage{i + 1}")(x, train)

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, **{f"stage{i + 1}": stage(i) for i in range(len(STAGES))},
            "pooled": lambda x: pooled_with_dropout(x, self.dropout, train)})
