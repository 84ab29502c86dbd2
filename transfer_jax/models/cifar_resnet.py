"""Residual networks for small images (He et al. 2016, "Deep residual learning", section 4.2)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import global_average
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.taps import Backbone, Taps, walk

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class Form:
    """What implementations differ in.

    same: padding of TensorFlow's SAME kind, which at strides of 2 pads the end only; otherwise both sides equally.
    bias: whether convolutions have one. shortcut_norm: whether BatchNorm follows the convolution of a shortcut.
    momentum, epsilon, unbiased: of BatchNorm.
    """

    same: bool = False
    bias: bool = False
    shortcut_norm: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = False


FORMS = {"paper": Form(), "pytorch": Form(unbiased=True),
         "mlperf_tiny": Form(same=True, bias=True, shortcut_norm=False, momentum=0.99, epsilon=1e-3)}


def conv(features: int, size: int, strides: int, form: Form, dtype: jnp.dtype, name: str) -> Conv:
    """The convolution that all of these networks are made of."""
    return Conv(features, size, strides, "SAME" if form.same else size // 2, use_bias=form.bias, dtype=dtype,
                kernel_init=he_normal, name=name)


def norm(form: Form, dtype: jnp.dtype, name: str) -> BatchNorm:
    """The BatchNorm behind it."""
    return BatchNorm(form.momentum, form.epsilon, dtype, unbiased=form.unbiased, name=name)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut: [B, H, W, C] -> [B, H / strides, W / strides, features]."""

    features: int
    strides: int
    shortcut: str
    form: Form
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = conv(self.features, 3, self.strides, self.form, self.dtype, "conv1")(x)
        y = nn.relu(norm(self.form, self.dtype, "bn1")(y, train))
        y = conv(self.features, 3, 1, self.form, self.dtype, "conv2")(y)
        y = norm(self.form, self.dtype, "bn2")(y, train)
        return nn.relu(y + self._residual(x, train))

    def _residual(self, x: jax.Array, train: bool) -> jax.Array:
        if self.strides == 1 and x.shape[-1] == self.features:
            return x
        if self.shortcut == "B":
            x = conv(self.features, 1, self.strides, self.form, self.dtype, "shortcut_conv")(x)
            return norm(self.form, self.dtype, "shortcut_bn")(x, train) if self.form.shortcut_norm else x
        missing = self.features - x.shape[-1]
        x = x[:, ::self.strides, ::self.strides]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class CifarStage(nn.Module):
    """`blocks` residual blocks, named `block0` ...; the first has the strides of the stage."""

    features: int
    blocks: int
    strides: int
    shortcut: str
    form: Form
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = rematerialized(CifarBlock, self.remat)
        for i in range(self.blocks):
            strides = self.strides if i == 0 else 1
            x = block(self.features, strides, self.shortcut, self.form, self.dtype, name=f"block{i}")(x, train)
        return x


class CifarResNet(Backbone):
    """ResNet of depth 6n + 2 with three stages of n blocks at widths 16, 32, 64 times `width`.

    Taps: `stem`, `stage1` (image size), `stage2` (1/2), `stage3` (1/4), `pooled` [B, 64 * width].
    shortcut: 'A' (no parameters: subsample and pad the channels with zeros) or 'B' (1x1 convolution).
    form: 'paper'; 'pytorch' (BatchNorm stores the unbiased variance); 'mlperf_tiny' (the Keras network of that
        benchmark, Banbury et al. 2021: biases, SAME padding, shortcuts without BatchNorm; images of 0..255).
    """

    depth: int = 20
    width: float = 1.0
    shortcut: str = "A"
    form: str = "paper"

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("stem", "stage1", "stage2", "stage3", "pooled")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.depth < 8 or (self.depth - 2) % 6:
            raise UserError(f"depth={self.depth} of a CIFAR ResNet is not 6n + 2; use 8, 14, 20, 32, 44, 56 or 110")
        if self.shortcut not in ("A", "B"):
            raise UserError(f"shortcut={self.shortcut!r} of a CIFAR ResNet is unknown; use 'A' or 'B'")
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS, "a CIFAR ResNet")
        form = FORMS[self.form]
        widths = [max(1, round(16 * self.width * 2**i)) for i in range(3)]

        def stem(x):
            x = conv(widths[0], 3, 1, form, self.dtype, "conv1")(x)
            return nn.relu(norm(form, self.dtype, "bn1")(x, train))

        def stage(i):
            blocks = (self.depth - 2) // 6
            return lambda x: CifarStage(widths[i], blocks, 1 if i == 0 else 2, self.shortcut, form, self.remat,
                                        self.dtype, name=f"stage{i + 1}")(x, train)

        return walk(x.astype(self.dtype), self.until, {
            "stem": stem, "stage1": stage(0), "stage2": stage(1), "stage3": stage(2), "pooled": global_average})
