"""Inception-v3 (Szegedy et al. 2016, "Rethinking the Inception architecture")."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import unknown
from transfer_jax.layers.pooling import global_average, max_pool
from transfer_jax.models.blocks import rematerialized
from transfer_jax.models.googlenet import ConvNormRelu, Norm, to_half_range
from transfer_jax.models.image_size import require_size
from transfer_jax.models.taps import Backbone, Taps, walk


@dataclasses.dataclass(frozen=True)
class Unit:
    """One convolution of a module. Strides of 1 keep the size of the map, strides of 2 go without padding."""

    name: str
    features: int
    kernel: tuple[int, int]
    strides: int = 1


Branch = tuple[tuple[Unit, ...], ...]  # steps in a row; the units of one step lie side by side


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A module: branches, and one more of 3x3 pooling: averages projected to `projected` channels, or maxima by 2."""

    branches: tuple[Branch, ...]
    projected: int | None = None


def line(name: str, *sizes: tuple[int, int, int], strides: int = 1) -> Branch:
    """Convolutions (features, rows, columns) in a row, named `name`, or `name_1` ...; the last has the strides."""
    names = [name] if len(sizes) == 1 else [f"{name}_{i}" for i in range(1, len(sizes) + 1)]
    return tuple((Unit(called, features, (rows, columns), strides if i == len(sizes) else 1),)
                 for i, (called, (features, rows, columns)) in enumerate(zip(names, sizes, strict=True), 1))


def split(name: str, features: int) -> Branch:
    """One step of a 1x3 and a 3x1 convolution side by side."""
    return ((Unit(f"{name}a", features, (1, 3)), Unit(f"{name}b", features, (3, 1))),)


def mixed_5(projected: int) -> Mixed:
    """Figure 5 of the paper, with a 5x5 kernel in the second branch."""
    return Mixed((line("branch1x1", (64, 1, 1)), line("branch5x5", (48, 1, 1), (64, 5, 5)),
                  line("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))), projected)


def mixed_6(width: int) -> Mixed:
    """Figure 6 with kernels of 1x7 and 7x1."""
    return Mixed((line("branch1x1", (192, 1, 1)),
                  line("branch7x7", (width, 1, 1), (width, 1, 7), (192, 7, 1)),
                  line("branch7x7dbl", (width, 1, 1), (width, 7, 1), (width, 1, 7), (width, 7, 1), (192, 1, 7))), 192)


MIXED_7 = Mixed((  # figure 7
    line("branch1x1", (320, 1, 1)), (*line("branch3x3_1", (384, 1, 1)), *split("branch3x3_2", 384)),
    (*line("branch3x3dbl", (448, 1, 1), (384, 3, 3)), *split("branch3x3dbl_3", 384))), 192)

MODULES = {
    "5b": mixed_5(32), "5c": mixed_5(64), "5d": mixed_5(64),
    "6a": Mixed((line("branch3x3", (384, 3, 3), strides=2),
                 line("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3), strides=2))),
    "6b": mixed_6(128), "6c": mixed_6(160), "6d": mixed_6(160), "6e": mixed_6(192),
    "7a": Mixed((line("branch3x3", (192, 1, 1), (320, 3, 3), strides=2),
                 line("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), strides=2))),
    "7b": MIXED_7, "7c": MIXED_7}
# The plain convolutions in front: features, kernel, strides, padding, and whether max-pooling comes first.
STEM = {"conv_1a": (32, 3, 2, 0, False), "conv_2a": (32, 3, 1, 0, False), "conv_2b": (64, 3, 1, 1, False),
        "conv_3b": (80, 1, 1, 0, True), "conv_4a": (192, 3, 1, 0, False)}
LEAST = {"conv_1a": 3, "conv_2a": 7, "conv_3b": 11, "conv_4a": 19, "mixed_5b": 27, "mixed_6a": 43, "mixed_7a": 75}


@dataclasses.dataclass(frozen=True)
class Form:
    """What implementations differ in: BatchNorm, and whether padding counts in the averages of the pooling branch."""

    norm: Norm
    padding_counts: bool


FORMS = {"pytorch": Form(Norm(), True), "keras": Form(Norm(1e-3, 0.99, False, False), False)}


class InceptionModule(nn.Module):
    """All branches of a module side by side: [B, H, W, C] -> [B, H', W', sum of the branches' last channels]."""

    mixed: Mixed
    form: Form
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def unit(x: jax.Array, unit: Unit) -> jax.Array:
            padding = (0, 0) if unit.strides > 1 else None
            return ConvNormRelu(unit.features, unit.kernel, unit.strides, padding, self.form.norm, self.dtype,
                                name=unit.name)(x, train)

        def along(x: jax.Array, branch: Branch) -> jax.Array:
            for step in branch:
                x = jnp.concatenate([unit(x, one) for one in step], -1)
            return x

        outputs = [along(x, branch) for branch in self.mixed.branches]
        if self.mixed.projected is None:
            return jnp.concatenate([*outputs, max_pool(x, 3, 2)], -1)
        mean = nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=self.form.padding_counts)
        return jnp.concatenate([*outputs, unit(mean, Unit("branch_pool", self.mixed.projected, (1, 1)))], -1)


class InceptionV3(Backbone):
    """Inception-v3, without its auxiliary classifier (it serves training from scratch only).

    Taps: `conv_1a`, `conv_2a`, `conv_2b` (1/2 of the image), `conv_3b`, `conv_4a` (1/4), `mixed_5b` ... `mixed_5d`
    (1/8), `mixed_6a` ... `mixed_6e` (1/16), `mixed_7a` ... `mixed_7c` (1/32), `pooled` [B, 2048]. Max-pooling belongs
    to the layer behind it. Images are expected as (v - 0.5) / 0.5.
    transform_input: images come normalised by ImageNet's mean and standard deviation instead.
    form: 'pytorch' or 'keras' (BatchNorm without scale, other averages at the border).
    dropout: rate of `pooled`, needs the rng 'dropout' in training.
    """

    transform_input: bool = False
    form: str = "pytorch"
    dropout: float = 0.5

    @property
    def tap_names(self) -> tuple[str, ...]:
        return (*STEM, *(f"mixed_{name}" for name in MODULES), "pooled")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """float [B, H, W, C] -> taps."""
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS, "Inception-v3")
        require_size(x, LEAST, self.tap_names, self.until, "Inception-v3")
        form = FORMS[self.form]
        if self.transform_input:
            x = to_half_range(x)

        def conv(name: str):
            features, size, strides, padding, pools = STEM[name]
            return lambda x: ConvNormRelu(features, size, strides, (padding, padding), form.norm, self.dtype,
                                          name=name)(max_pool(x, 3, 2) if pools else x, train)

        def mixed(name: str):
            block = rematerialized(InceptionModule, self.remat)
            return lambda x: block(MODULES[name], form, self.dtype, name=f"mixed_{name}")(
                max_pool(x, 3, 2) if name == "5b" else x, train)

        def pooled(x: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(global_average(x))

        return walk(x.astype(self.dtype), self.until, {
            **{name: conv(name) for name in STEM}, **{f"mixed_{name}": mixed(name) for name in MODULES},
            "pooled": pooled})
