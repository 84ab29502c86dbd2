"""What MobileNets and EfficientNets are made of: depthwise convolutions, inverted residuals, squeeze-and-excitation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from transfer_jax.core.errors import unknown
from transfer_jax.layers.convolution import Conv, Padding
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import global_average
from transfer_jax.layers.stochastic_depth import DropPath
from transfer_jax.models.blocks import rematerialized

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x, "relu": nn.relu, "relu6": nn.relu6, "leaky_relu": lambda x: nn.leaky_relu(x, 0.1),
    "hard_swish": nn.hard_swish, "silu": nn.silu, "sigmoid": nn.sigmoid, "hard_sigmoid": nn.hard_sigmoid}
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_normal_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # each output channel has one input
small_normal = nn.initializers.normal(0.01)


@dataclasses.dataclass(frozen=True)
class Form:
    """What implementations differ in.

    padding: of a convolution with strides of 2. 'half': half of the kernel at both sides; 'same': as TensorFlow, where
        a map of even size has less at its beginning than at its end; 'end': as if the size were even, whatever it is.
    epsilon, momentum, unbiased: of BatchNorm.
    expand_momentum: of BatchNorm behind the expanding convolutions, where it is another.
    """

    padding: str = "half"
    epsilon: float = 1e-5
    momentum: float = 0.9
    unbiased: bool = True
    expand_momentum: float | None = None


def find_form(forms: Mapping[str, Form], name: str, epsilon: float | None, momentum: float | None,
              network: str) -> Form:
    """`forms[name]`, with another `epsilon` and `momentum` of every BatchNorm unless they are None."""
    if name not in forms:
        raise unknown("form", name, forms, network)
    form = forms[name]
    if epsilon is not None:
        form = dataclasses.replace(form, epsilon=epsilon)
    if momentum is not None:
        form = dataclasses.replace(form, momentum=momentum, expand_momentum=None)
    return form


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least one, and never more than a tenth below `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def strided_padding(padding: str, kernel: int, strides: int) -> Padding:
    """The padding that `Form.padding` stands for."""
    if padding == "same":
        return "SAME"
    if padding == "end" and strides > 1:
        return ((kernel // 2 - 1, kernel // 2),) * 2
    return kernel // 2


def least_sizes(paddings: Mapping[str, str]) -> dict[str, int]:
    """The smallest image side for which each tap is not empty.

    paddings: for each tap that halves the map, in forward order, `Form.padding` of its convolution.
    """
    least = {}
    for number, tap in enumerate(paddings, 1):
        side = 1
        for padding in reversed(list(paddings.values())[:number]):
            side = 2 * side - (padding != "end")
        least[tap] = side
    return least


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, activation: [B, H, W, C] -> [B, H / strides, W / strides, features]."""

    features: int
    kernel: int
    strides: int
    activation: str
    form: Form
    dtype: Any
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        form = self.form
        x = Conv(self.features, self.kernel, self.strides, strided_padding(form.padding, self.kernel, self.strides),
                 feature_group_count=self.features if self.depthwise else 1, use_bias=False, dtype=self.dtype,
                 kernel_init=he_normal_depthwise if self.depthwise else he_normal, name="conv")(x)
        x = BatchNorm(form.momentum, form.epsilon, self.dtype, unbiased=form.unbiased, name="bn")(x, train)
        return ACTIVATIONS[self.activation](x)


class SqueezeExcite(nn.Module):
    """Scales every channel by a factor that depends on the means of all (Hu et al. 2018): [B, H, W, C] -> the same."""

    squeezed: int
    activation: str
    gate: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = global_average(x)[:, None, None]
        y = Conv(self.squeezed, 1, dtype=self.dtype, kernel_init=he_normal, name="reduce")(y)
        y = Conv(x.shape[-1], 1, dtype=self.dtype, kernel_init=he_normal,
                 name="expand")(ACTIVATIONS[self.activation](y))
        return x * ACTIVATIONS[self.gate](y)


@dataclasses.dataclass(frozen=True)
class Inverted:
    """The sizes of one inverted residual.

    features, expanded: channels of its output, and between its two 1x1 convolutions; the first is left out if the
        input has as many as `expanded`.
    squeezed: channels inside of squeeze-and-excitation; 0: without. squeeze_activations: behind its two convolutions.
    padding: another than that of the form.
    drop_path: rate at which an example skips the block in training.
    """

    features: int
    expanded: int
    kernel: int = 3
    strides: int = 1
    activation: str = "relu6"
    squeezed: int = 0
    squeeze_activations: tuple[str, str] = ("relu", "hard_sigmoid")
    padding: str | None = None
    drop_path: float = 0.0


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 convolution to fewer (Sandler et al. 2018).

    [B, H, W, C] -> [B, H / strides, W / strides, features]; with a shortcut if that is the shape of the input.
    """

    sizes: Inverted
    form: Form
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        sizes, form, y = self.sizes, self.form, x
        if sizes.expanded != x.shape[-1]:
            momentum = form.momentum if form.expand_momentum is None else form.expand_momentum
            y = ConvNorm(sizes.expanded, 1, 1, sizes.activation, dataclasses.replace(form, momentum=momentum),
                         self.dtype, name="expand")(y, train)
        padded = dataclasses.replace(form, padding=sizes.padding or form.padding)
        y = ConvNorm(sizes.expanded, sizes.kernel, sizes.strides, sizes.activation, padded, self.dtype, depthwise=True,
                     name="depthwise")(y, train)
        if sizes.squeezed:
            y = SqueezeExcite(sizes.squeezed, *sizes.squeeze_activations, self.dtype, name="se")(y)
        y = ConvNorm(sizes.features, 1, 1, "linear", form, self.dtype, name="project")(y, train)
        return x + DropPath(sizes.drop_path)(y, train) if y.shape == x.shape else y


class InvertedStage(nn.Module):
    """Inverted residuals in a row, named `block0` ..."""

    blocks: tuple[Inverted, ...]
    form: Form
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = rematerialized(InvertedResidual, self.remat)
        for i, sizes in enumerate(self.blocks):
            x = block(sizes, self.form, self.dtype, name=f"block{i}")(x, train)
        return x


def pooled_with_dropout(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Mean over the map with dropout: [B, H, W, C] -> [B, C]; needs the rng 'dropout' in training."""
    return nn.Dropout(rate, deterministic=not train)(global_average(x))
