"""MobileNetV2 (Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks")."""

from __future__ import annotations

import jax
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.models.inverted_residual import (
    ConvNorm,
    Form,
    Inverted,
    InvertedStage,
    find_form,
    pooled_with_dropout,
    round_channels,
)
from transfer_jax.models.taps import Backbone, Taps, walk

# Expansion, channels, blocks and strides of the stages: table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
TOP = 1280  # channels of the last convolution
FORMS = {"torchvision": Form(), "transformers": Form("same", 1e-3, 0.003), "keras": Form("same", 1e-3, 0.999, False)}


class MobileNetV2(Backbone):
    """MobileNetV2 with `width` times the channels of the paper, in multiples of 8.

    Taps: `stem` and `stage1` (1/2 of the image), `stage2` (1/4), `stage3` (1/8), `stage4` and `stage5` (1/16), `stage6`
    and `stage7` (1/32), `top` (behind the last 1x1 convolution), `pooled` [B, 1280, or more at widths above 1].
    form: 'torchvision' (also timm's), 'transformers' or 'keras'; the last two pad as TensorFlow. Statistics of
        'transformers' keep 0.003 of what they were in every step, as they do there; a `momentum` of 0.9 is steadier.
    epsilon, momentum: of BatchNorm; None: those of the form.
    dropout: rate of `pooled`, needs the rng 'dropout' in training.
    """

    width: float = 1.0
    form: str = "torchvision"
    epsilon: float | None = None
    momentum: float | None = None
    dropout: float = 0.2

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i + 1}" for i in range(len(STAGES))), "top", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        form = find_form(FORMS, self.form, self.epsilon, self.momentum, "MobileNetV2")
        if self.width <= 0:
            raise UserError(f"width={self.width} of MobileNetV2 is not positive; use for example 0.5 or 1.0")

        def stem(x: jax.Array) -> jax.Array:
            return ConvNorm(round_channels(32 * self.width), 3, 2, "relu6", form, self.dtype, name="stem")(x, train)

        def stage(i: int):
            return lambda x: InvertedStage(self._blocks(i, x.shape[-1]), form, self.remat, self.dtype,
                                           name=f"stage{i + 1}")(x, train)

        def top(x: jax.Array) -> jax.Array:
            channels = round_channels(TOP * max(1.0, self.width))
            return ConvNorm(channels, 1, 1, "relu6", form, self.dtype, name="top")(x, train)

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, **{f"stage{i + 1}": stage(i) for i in range(len(STAGES))}, "top": top,
            "pooled": lambda x: pooled_with_dropout(x, self.dropout, train)})

    def _blocks(self, stage: int, channels: int) -> tuple[Inverted, ...]:
        """The blocks of a stage whose input has `channels`."""
        expansion, features, count, strides = STAGES[stage]
        features = round_channels(features * self.width)
        return tuple(Inverted(features, expansion * (channels if i == 0 else features), 3, strides if i == 0 else 1)
                     for i in range(count))
