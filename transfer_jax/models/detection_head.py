"""Detection on a feature pyramid over any maps of a backbone (Lin et al. 2017; Tian et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import GroupNorm
from transfer_jax.models.pyramid import fine_to_coarse, top_down
from transfer_jax.models.taps import Taps

PRIOR = 0.01  # of an object at a point, at the start: else the background drowns everything (Lin et al. 2017)
LARGEST_EXPONENT = 6.0  # of a distance in strides
UNBOUNDED = 1e6  # strides


class DetectionHead(nn.Module, kw_only=True):
    """FCOS: for every point of every level a score per class, its centre-ness and the box around it.

    Gives float32 [B, points, classes + 11]; `tasks/detection.py: Points` names the columns. The maps `taps`, fine to
    coarse, become levels of `width` channels, from above each the sum of its 1x1 convolution and the level above,
    enlarged; `extra` more levels follow, each half as large. Two towers of `depth` 3x3 convolutions with GroupNorm, one
    for classes and one for boxes and centre-ness, are shared by all levels; each level scales its distances.

    A level of stride s answers for objects whose farthest edge is at most `reach` strides from the point, and farther
    than the level before reaches; the last one for all larger ones.
    """

    classes: int
    taps: tuple[str, ...] = ("stage2", "stage3", "stage4")
    width: int = 64
    depth: int = 2
    extra: int = 0
    groups: int = 8
    reach: float = 8.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Taps | jax.Array, image_size: tuple[int, int] | None = None,
                 train: bool = False) -> jax.Array:
        if image_size is None:
            raise UserError("the detection head needs the taps of images; it cannot be applied to a plain array")
        if self.width % self.groups:
            raise UserError(f"width={self.width} of a detection head is no multiple of groups={self.groups}")
        levels = self._pyramid(taps, image_size)
        towers = [[Conv(self.width, 3, dtype=self.dtype, name=f"{name}{i}") for i in range(self.depth)]
                  for name in ("class_tower", "box_tower")]
        norms = [[GroupNorm(num_groups=self.groups, dtype=self.dtype, name=f"{name}{i}") for i in range(self.depth)]
                 for name in ("class_norm", "box_norm")]
        score = Conv(self.classes, 3, dtype=self.dtype, name="scores", kernel_init=nn.initializers.normal(0.01),
                     bias_init=nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR)))
        edges = Conv(4, 3, dtype=self.dtype, name="edges", kernel_init=nn.initializers.normal(0.01))
        centre = Conv(1, 3, dtype=self.dtype, name="centreness", kernel_init=nn.initializers.normal(0.01))
        found = []
        for number, (level, geometry) in enumerate(zip(
                levels, level_geometry([x.shape[1:3] for x in levels], image_size, self.reach), strict=True)):
            named, boxed = (_tower(level, *parts) for parts in zip(towers, norms, strict=True))
            scale = self.param(f"scale{number}", nn.initializers.ones, (1,))
            distances = jnp.exp(jnp.minimum(scale * edges(boxed).astype(jnp.float32), LARGEST_EXPONENT))
            rows = [x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
                    for x in (score(named), centre(boxed), distances)]
            found.append(_with_geometry(*rows, geometry))
        return jnp.concatenate(found, axis=1)

    def _pyramid(self, taps: Taps, image_size: tuple[int, int]) -> list[jax.Array]:
        """Maps [B, h, w, width], fine to coarse."""
        maps = fine_to_coarse(taps, self.taps, image_size, "detection")
        levels = top_down(list(maps.values()), self.width, self.dtype)
        for i in range(self.extra):
            levels.append(Conv(self.width, 3, strides=2, dtype=self.dtype, name=f"extra{i}")(nn.relu(levels[-1])))
        return levels


def _tower(x: jax.Array, convolutions: Sequence[nn.Module], norms: Sequence[nn.Module]) -> jax.Array:
    for convolution, norm in zip(convolutions, norms, strict=True):
        x = nn.relu(norm(convolution(x)))
    return x


def _with_geometry(scores: jax.Array, centre: jax.Array, distances: jax.Array, geometry: np.ndarray) -> jax.Array:
    """The columns of one level: distances in strides become boxes, and constants of the points follow."""
    places, strides = geometry[:, :2], geometry[:, 2:4]
    boxes = jnp.concatenate([places - distances[..., :2] * strides, places + distances[..., 2:] * strides], -1)
    constants = jnp.broadcast_to(geometry, (scores.shape[0], *geometry.shape))
    return jnp.concatenate([scores, centre, boxes, constants], -1)


def level_geometry(sizes: Sequence[tuple[int, int]], image_size: tuple[int, int], reach: float) -> list[np.ndarray]:
    """For each level float32 [points, 6]: y, x, stride along y and x in units of the image, least and greatest
    distance to an edge in strides."""
    found, before = [], 0.0
    for number, (height, width) in enumerate(sizes):
        stride = image_size[0] / height  # pixels
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        greatest = UNBOUNDED if number == len(sizes) - 1 else reach
        constants = np.tile([1 / height, 1 / width, before / stride, greatest], (height * width, 1))
        found.append(np.concatenate([y.reshape(-1, 1), x.reshape(-1, 1), constants], 1).astype(np.float32))
        before = reach * stride
    return found
