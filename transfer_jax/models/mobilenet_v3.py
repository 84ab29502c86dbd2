"""MobileNetV3 (Howard et al. 2019, "Searching for MobileNetV3")."""

from __future__ import annotations

import jax
from flax import linen as nn

from transfer_jax.core.errors import unknown
from transfer_jax.layers.pooling import global_average
from transfer_jax.models.inverted_residual import (
    ConvNorm,
    Form,
    Inverted,
    InvertedStage,
    find_form,
    round_channels,
    small_normal,
)
from transfer_jax.models.taps import Backbone, Taps, walk


def block(kernel: int, expanded: int, features: int, squeeze: bool, activation: str, strides: int) -> Inverted:
    """One row of the paper's tables; squeeze-and-excitation has a quarter of the channels inside."""
    return Inverted(features, expanded, kernel, strides, activation, round_channels(expanded // 4) if squeeze else 0)


RE, HS = "relu", "hard_swish"
STAGES = {  # tables 1 and 2 of the paper; a stage are the rows with the same number of channels
    "small": (
        (block(3, 16, 16, True, RE, 2),),
        (block(3, 72, 24, False, RE, 2), block(3, 88, 24, False, RE, 1)),
        (block(5, 96, 40, True, HS, 2), *[block(5, 240, 40, True, HS, 1)] * 2),
        (block(5, 120, 48, True, HS, 1), block(5, 144, 48, True, HS, 1)),
        (block(5, 288, 96, True, HS, 2), *[block(5, 576, 96, True, HS, 1)] * 2)),
    "large": (
        (block(3, 16, 16, False, RE, 1),),
        (block(3, 64, 24, False, RE, 2), block(3, 72, 24, False, RE, 1)),
        (block(5, 72, 40, True, RE, 2), *[block(5, 120, 40, True, RE, 1)] * 2),
        (block(3, 240, 80, False, HS, 2), block(3, 200, 80, False, HS, 1), *[block(3, 184, 80, False, HS, 1)] * 2),
        (block(3, 480, 112, True, HS, 1), block(3, 672, 112, True, HS, 1)),
        (block(5, 672, 160, True, HS, 2), *[block(5, 960, 160, True, HS, 1)] * 2))}
HIDDEN = {"small": 1024, "large": 1280}
FORMS = {"torchvision": Form("half", 1e-3, 0.99), "timm": Form(), "timm_tf": Form("same", 1e-3),
         "keras": Form("same", 1e-3, 0.999, False)}


class MobileNetV3(Backbone):
    """MobileNetV3 of the size 'small' or 'large'.

    Taps: `stem` (1/2 of the image), `stage1` ... `stage5` (small) or `stage6` (large; the last is 1/32), `top` (behind
    the last 1x1 convolution), `average` [B, 576 or 960] (its mean), `pooled` [B, 1024 or 1280]: behind the hidden
    layer of the published classifier, and dropout.
    form: 'torchvision' and 'timm', which differ in BatchNorm, 'timm_tf' (timm's names with `tf_`) and 'keras', which
        pad as TensorFlow.
    epsilon, momentum: of BatchNorm; None: those of the form.
    dropout: rate of `pooled`, needs the rng 'dropout' in training.
    """

    size: str = "small"
    form: str = "torchvision"
    epsilon: float | None = None
    momentum: float | None = None
    dropout: float = 0.2

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i + 1}" for i in range(len(STAGES.get(self.size, ())))), "top", "average", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.size not in STAGES:
            raise unknown("size", self.size, STAGES, "MobileNetV3")
        form = find_form(FORMS, self.form, self.epsilon, self.momentum, "MobileNetV3")
        stages = STAGES[self.size]

        def stem(x: jax.Array) -> jax.Array:
            return ConvNorm(16, 3, 2, HS, form, self.dtype, name="stem")(x, train)

        def stage(i: int):
            return lambda x: InvertedStage(stages[i], form, self.remat, self.dtype, name=f"stage{i + 1}")(x, train)

        def top(x: jax.Array) -> jax.Array:
            return ConvNorm(6 * stages[-1][-1].features, 1, 1, HS, form, self.dtype, name="top")(x, train)

        def pooled(x: jax.Array) -> jax.Array:
            x = nn.Dense(HIDDEN[self.size], dtype=self.dtype, kernel_init=small_normal, name="hidden")(x)
            return nn.Dropout(self.dropout, deterministic=not train)(nn.hard_swish(x))

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, **{f"stage{i + 1}": stage(i) for i in range(len(stages))}, "top": top,
            "average": global_average, "pooled": pooled})
