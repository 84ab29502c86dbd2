"""EfficientNet (Tan & Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks")."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.models.image_size import require_size
from transfer_jax.models.inverted_residual import (
    ConvNorm,
    Form,
    Inverted,
    InvertedStage,
    find_form,
    least_sizes,
    pooled_with_dropout,
    round_channels,
)
from transfer_jax.models.taps import Backbone, Taps, walk

# Expansion, kernel, strides, channels and blocks of the stages of B0: table 1 of the paper.
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
          (6, 3, 1, 320, 1))


@dataclasses.dataclass(frozen=True)
class Scale:
    """How a variant differs from B0: factors of channels and blocks, side of its images, published rate of dropout."""

    width: float
    depth: float
    side: int
    dropout: float


SCALES = (Scale(1.0, 1.0, 224, 0.2), Scale(1.0, 1.1, 240, 0.2), Scale(1.1, 1.2, 260, 0.3), Scale(1.2, 1.4, 300, 0.3),
          Scale(1.4, 1.8, 380, 0.4), Scale(1.6, 2.2, 456, 0.4), Scale(1.8, 2.6, 528, 0.5), Scale(2.0, 3.1, 600, 0.5))
TENSORFLOW_EPSILON = 1e-3
FORMS = {"torchvision": Form(), "timm": Form(), "timm_tf": Form("same", TENSORFLOW_EPSILON),
         "transformers": Form("end", TENSORFLOW_EPSILON, 0.01, expand_momentum=0.9),
         "keras": Form("same", TENSORFLOW_EPSILON, 0.99, False)}
LARGE_TORCHVISION = Form("half", TENSORFLOW_EPSILON, 0.99)  # B5 and larger
SILU_GATE = ("silu", "sigmoid")


def stage_depths(variant: int) -> tuple[int, ...]:
    """Number of blocks of each stage."""
    return tuple(math.ceil(SCALES[variant].depth * stage[-1]) for stage in STAGES)


class EfficientNet(Backbone):
    """EfficientNet B0 to B7, by the number `variant`.

    Taps: `stem` and `stage1` (1/2 of the image), `stage2` (1/4), `stage3` (1/8), `stage4` and `stage5` (1/16), `stage6`
    and `stage7` (1/32), `top` (behind the last 1x1 convolution), `pooled` [B, 1280 for B0 ... 2560 for B7].

    form: 'torchvision' and 'timm' (which differ in BatchNorm from B5 on), 'timm_tf' (timm's names with `tf_`),
        'keras' (both pad as TensorFlow), 'transformers' (pads as TensorFlow would for even maps). Statistics of
        'transformers' keep a hundredth of what they were in every step, as they do there; a `momentum` of 0.9 is
        steadier. Images are normalised as ImageNet everywhere: what Keras does with them in the network is not here.
    symmetric: numbers of blocks, counted through all stages, that pad both sides equally whatever the form;
        transformers tells them as `depthwise_padding`.
    epsilon, momentum: of BatchNorm; None: those of the form.
    dropout: rate of `pooled`; None: as published. drop_path: rate of stochastic depth, growing linearly from 0 at the
        first block to `drop_path` behind the last. Both need the rng 'dropout' in training.
    """

    variant: int = 0
    form: str = "torchvision"
    symmetric: tuple[int, ...] = ()
    epsilon: float | None = None
    momentum: float | None = None
    dropout: float | None = None
    drop_path: float = 0.2

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i + 1}" for i in range(len(STAGES))), "top", "pooled")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *[self._scale().side] * 2, 3), jnp.float32)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        scale, network = self._scale(), f"EfficientNet-B{self.variant}"
        forms = FORMS | ({"torchvision": LARGE_TORCHVISION} if self.variant >= 5 else {})
        form = find_form(forms, self.form, self.epsilon, self.momentum, network)
        stages = self._stages(scale)
        halved = {"stem": form.padding, **{f"stage{i}": blocks[0].padding or form.padding
                                           for i, blocks in enumerate(stages, 1) if blocks[0].strides > 1}}
        require_size(x, least_sizes(halved), self.tap_names, self.until, network)

        def end(name: str, features: int, kernel: int, strides: int):
            return lambda x: ConvNorm(round_channels(features * scale.width), kernel, strides, "silu", form, self.dtype,
                                      name=name)(x, train)

        def stage(i: int):
            return lambda x: InvertedStage(stages[i], form, self.remat, self.dtype, name=f"stage{i + 1}")(x, train)

        rate = scale.dropout if self.dropout is None else self.dropout
        return walk(x.astype(self.dtype), self.until, {
            "stem": end("stem", 32, 3, 2), **{f"stage{i + 1}": stage(i) for i in range(len(STAGES))},
            "top": end("top", 1280, 1, 1), "pooled": lambda x: pooled_with_dropout(x, rate, train)})

    def _scale(self) -> Scale:
        if self.variant not in range(len(SCALES)):
            raise UserError(f"variant={self.variant} of an EfficientNet is unknown; use 0 to {len(SCALES) - 1}")
        return SCALES[self.variant]

    def _stages(self, scale: Scale) -> list[tuple[Inverted, ...]]:
        """The blocks of every stage. Squeeze-and-excitation has a quarter of the channels that enter its block."""
        depths, channels, number = stage_depths(self.variant), round_channels(32 * scale.width), 0
        stages = []
        for (expansion, kernel, strides, features, _), depth in zip(STAGES, depths, strict=True):
            features, blocks = round_channels(features * scale.width), []
            for i in range(depth):
                blocks.append(Inverted(
                    features, expansion * channels, kernel, strides if i == 0 else 1, "silu", channels // 4, SILU_GATE,
                    "half" if number in self.symmetric else None, self.drop_path * number / sum(depths)))
                channels, number = features, number + 1
            stages.append(tuple(blocks))
        return stages
