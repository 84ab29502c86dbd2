"""DenseNet-BC (Huang et al. 2017, "Densely connected convolutional networks")."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import avg_pool, global_average, max_pool
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.image_size import require_size
from transfer_jax.models.taps import Backbone, Taps, walk

DEPTHS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
GROWTH = 32  # channels that every layer adds
LEAST = {"transition1": 5, "transition2": 13, "transition3": 29}
he_normal = nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class Form:
    """Settings of BatchNorm, which implementations differ in."""

    epsilon: float = 1e-5
    momentum: float = 0.9
    unbiased: bool = True


FORMS = {"pytorch": Form(), "keras": Form(1.001e-5, 0.99, False)}


def norm_relu(x: jax.Array, train: bool, form: Form, dtype: Any, name: str) -> jax.Array:
    """BatchNorm, then ReLU."""
    return nn.relu(BatchNorm(form.momentum, form.epsilon, dtype, unbiased=form.unbiased, name=name)(x, train))


def conv(x: jax.Array, features: int, size: int, dtype: Any, name: str, strides: int = 1) -> jax.Array:
    """The convolution without bias that all of these networks are made of."""
    return Conv(features, size, strides, size // 2, use_bias=False, dtype=dtype, kernel_init=he_normal, name=name)(x)


class DenseLayer(nn.Module):
    """[B, H, W, C] -> [B, H, W, growth], the new channels only; a 1x1 convolution in front makes 4 * growth."""

    growth: int
    form: Form
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = norm_relu(x, train, self.form, self.dtype, "norm1")
        x = norm_relu(conv(x, 4 * self.growth, 1, self.dtype, "conv1"), train, self.form, self.dtype, "norm2")
        return conv(x, self.growth, 3, self.dtype, "conv2")


class DenseBlock(nn.Module):
    """[B, H, W, C] -> [B, H, W, C + layers * growth]: every layer (`layer0` ...) sees all channels before it."""

    layers: int
    growth: int
    form: Form
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = rematerialized(DenseLayer, self.remat)
        for i in range(self.layers):
            x = jnp.concatenate([x, layer(self.growth, self.form, self.dtype, name=f"layer{i}")(x, train)], -1)
        return x


class Transition(nn.Module):
    """[B, H, W, C] -> [B, H / 2, W / 2, C / 2]: BatchNorm, ReLU, 1x1 convolution, 2x2 means."""

    form: Form
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1] // 2
        x = norm_relu(x, train, self.form, self.dtype, "norm")
        return avg_pool(conv(x, channels, 1, self.dtype, "conv"), 2)


class DenseNet(Backbone):
    """DenseNet of 121, 169 or 201 layers.

    Taps: `stem` (1/4 of the image, after max-pooling), `denseblock1`, `transition1` (1/8) ... `denseblock4` (1/32),
    `norm5`, which is its map behind BatchNorm and ReLU, and `pooled` [B, 1024, 1664 or 1920].
    form: 'pytorch' or 'keras' (settings of BatchNorm).
    """

    depth: int = 121
    form: str = "pytorch"

    @property
    def tap_names(self) -> tuple[str, ...]:
        inner = (name for i in range(1, 4) for name in (f"denseblock{i}", f"transition{i}"))
        return ("stem", *inner, "denseblock4", "norm5", "pooled")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.depth not in DEPTHS:
            raise UserError(f"depth={self.depth} of a DenseNet is unknown; use {', '.join(map(str, DEPTHS))}")
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS, "a DenseNet")
        require_size(x, LEAST, self.tap_names, self.until, f"DenseNet-{self.depth}")
        form, layers = FORMS[self.form], DEPTHS[self.depth]

        def stem(x: jax.Array) -> jax.Array:
            x = conv(x, 2 * GROWTH, 7, self.dtype, "conv0", strides=2)
            return max_pool(norm_relu(x, train, form, self.dtype, "norm0"), 3, 2, 1)

        def block(i: int):
            return lambda x: DenseBlock(layers[i - 1], GROWTH, form, self.remat, self.dtype,
                                        name=f"denseblock{i}")(x, train)

        def transition(i: int):
            return lambda x: Transition(form, self.dtype, name=f"transition{i}")(x, train)

        inner = {f"{kind}{i}": make(i) for i in range(1, 4)
                 for kind, make in (("denseblock", block), ("transition", transition))}
        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, **inner, "denseblock4": block(4),
            "norm5": lambda x: norm_relu(x, train, form, self.dtype, "norm5"), "pooled": global_average})
