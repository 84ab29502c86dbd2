"""Heads that answer for every pixel, from maps of any backbone: always float32 [B, H, W, classes]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import BatchNorm, GroupNorm
from transfer_jax.models.pyramid import Size, as_map, fine_to_coarse, resize, top_down
from transfer_jax.models.taps import Taps, find_tap


class SegmentationHead(nn.Module, kw_only=True):
    """Class scores per pixel [B, H, W, classes] from several maps.

    Each tap is projected by a 1x1 convolution to `width`, resized bilinearly to the finest tap and summed; then a
    3x3 convolution, a 1x1 convolution to `classes`, and a bilinear resize to `image_size`.
    """

    classes: int
    taps: tuple[str, ...] = ("stage1", "stage2", "stage3")
    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: Size | None = None, train: bool = False) -> jax.Array:
        names = self.taps if isinstance(taps, Mapping) else ("map",)
        maps = {name: as_map(find_tap(taps, name), name, image_size, "segmentation") for name in names}
        finest = max((value.shape[1:3] for value in maps.values()), key=lambda size: size[0] * size[1])
        total = sum(resize(Conv(self.width, 1, dtype=self.dtype, name=f"lateral_{name.replace('/', '_')}")(value),
                           finest) for name, value in maps.items())
        x = nn.relu(Conv(self.width, 3, dtype=self.dtype, name="smooth")(nn.relu(total)))
        x = Conv(self.classes, 1, dtype=self.dtype, name="classify")(x).astype(jnp.float32)
        return resize(x, image_size or finest)


class FCNHead(nn.Module, kw_only=True):
    """Fully convolutional network (Long, Shelhamer & Darrell 2015): a 1x1 convolution scores every tap.

    The scores of the coarsest tap are enlarged to the next finer one and added to its scores, and so on; the sum of the
    finest is enlarged to `image_size`. With taps of strides (32,), (16, 32), (8, 16, 32): FCN-32s, 16s, 8s. Scores of
    all but the coarsest start at 0, so that training starts with the coarse answer (section 4.2). Enlarging is bilinear
    and fixed (the paper learns a kernel that starts so).

    hidden: channels of a 3x3 convolution with BatchNorm and ReLU before the scores of the coarsest tap, as in
        torchvision's FCN (a quarter of the tap's); 0: none.
    dropout: rate behind these, needs the rng 'dropout'.
    """

    classes: int
    taps: tuple[str, ...] = ("stage2", "stage3", "stage4")
    hidden: int = 0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: Size | None = None, train: bool = False) -> jax.Array:
        *finer, x = fine_to_coarse(taps, self.taps, image_size, "fcn").values()
        if self.hidden:
            x = Conv(self.hidden, 3, use_bias=False, dtype=self.dtype, name="conv")(x)
            x = nn.relu(BatchNorm(unbiased=True, dtype=self.dtype, name="bn")(x, train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        total = self._score(x, len(finer), nn.initializers.lecun_normal())
        for number in reversed(range(len(finer))):
            own = self._score(finer[number], number, nn.initializers.zeros)
            total = resize(total, own.shape[1:3]) + own
        return resize(total, image_size or total.shape[1:3])

    def _score(self, x: jax.Array, number: int, kernel_init: nn.initializers.Initializer) -> jax.Array:
        score = Conv(self.classes, 1, dtype=self.dtype, kernel_init=kernel_init, name=f"score{number}")
        return score(x).astype(jnp.float32)


class FeaturePyramidHead(nn.Module, kw_only=True):
    """Semantic segmentation on a feature pyramid (Kirillov, Girshick, He & Dollar 2019, section 3).

    The taps, fine to coarse, become levels of `width` channels (Lin et al. 2017). Every level is brought to the size of
    the finest in steps of a 3x3 convolution to `branch` channels, GroupNorm, ReLU and bilinear enlargement by 2, as
    many as its size asks for (the finest: one, not enlarged). Their sum is scored by a 1x1 convolution and enlarged to
    `image_size`. The paper has 256 and 128 channels, 32 groups, and the strides 4, 8, 16, 32.
    """

    classes: int
    taps: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4")
    width: int = 64
    branch: int = 32
    groups: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: Size | None = None, train: bool = False) -> jax.Array:
        if self.branch % self.groups:
            raise UserError(f"branch={self.branch} of a feature_pyramid head is no multiple of groups={self.groups}")
        maps = fine_to_coarse(taps, self.taps, image_size, "feature_pyramid")
        levels = top_down(list(maps.values()), self.width, self.dtype)
        finest = levels[0].shape[1:3]
        total = sum(self._enlarged(level, number, finest) for number, level in enumerate(levels))
        scores = Conv(self.classes, 1, dtype=self.dtype, name="classify")(total).astype(jnp.float32)
        return resize(scores, image_size or finest)

    def _enlarged(self, x: jax.Array, number: int, finest: Size) -> jax.Array:
        for step, size in enumerate(doublings(x.shape[1:3], finest) or [finest]):
            x = Conv(self.branch, 3, dtype=self.dtype, name=f"branch{number}_{step}")(x)
            x = GroupNorm(num_groups=self.groups, dtype=self.dtype, name=f"norm{number}_{step}")(x)
            x = resize(nn.relu(x), size)
        return x


def doublings(size: Size, finest: Size) -> list[Size]:
    """Sizes on the way from `size` to the larger `finest`, each about twice the one before; none if they are equal."""
    if size == finest:
        return []
    steps = max(1, round(math.log2(math.sqrt(finest[0] * finest[1] / (size[0] * size[1])))))
    return [tuple(-(-side // 2**(steps - step)) for side in finest) for step in range(1, steps + 1)]
