"""Attention of each task over the features of one shared network."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import normalized
from transfer_jax.models.taps import Backbone, Taps


class TaskAttention(Backbone):
    """Multi-task attention (Liu et al. 2019, section 3.2): for each task a soft mask on every stage of a shared
    network, a_j = sigmoid(h_j(g_j([p_j; f_j(a_{j-1} * p_{j-1})]))), and the features a_j * p_j.

    p_1 ... p_S are maps of the shared network, input side first, each read from a tap (theirs take two maps from each
    stage, the first to make the mask and the last to be masked; here both are the tap). g and h are 1x1 convolutions,
    f a 3x3 convolution to the depth of the next stage, brought to its size by the mean of blocks; with BatchNorm (or
    `norm` 'group' or None), and ReLU behind f and g. Taps: `<task>1` ... `<task>S` and `<task>`, the mean over the
    last map.
    """

    tasks: tuple[str, ...] = ()
    stages: int = 3
    norm: str | None = "batch"

    resumes = False  # it reads several taps

    @property
    def tap_names(self) -> tuple[str, ...]:
        return tuple(name for task in self.tasks for name in (*(f"{task}{j + 1}" for j in range(self.stages)), task))

    @nn.compact
    def __call__(self, x: Sequence[jax.Array], train: bool = False) -> Taps:
        """Maps [B, H_j, W_j, C_j], each size a multiple of the next -> taps of the same shapes."""
        if isinstance(x, jax.Array) or len(x) != self.stages or any(m is None or m.ndim != 4 for m in x):
            raise UserError(f"the backbone 'task_attention' reads {self.stages} maps (its `stages`); name so many taps "
                            f"in the stream's inputs, as in inputs=dict(..., tasks=('backbone/stage1', ...))")
        taps: Taps = {}
        for task in self.tasks:
            before = None
            for j, shared in enumerate(x):
                joined = shared if before is None else jnp.concatenate([shared, before], -1)
                hidden = nn.relu(self._conv(joined, shared.shape[-1], 1, f"{task}{j + 1}_g", train))
                mask = nn.sigmoid(self._conv(hidden, shared.shape[-1], 1, f"{task}{j + 1}_h", train))
                taps[f"{task}{j + 1}"] = masked = mask * shared
                if j + 1 < self.stages:
                    after = x[j + 1]
                    before = nn.relu(self._conv(masked, after.shape[-1], 3, f"{task}{j + 1}_f", train))
                    before = _shrunk(before, after.shape[1:3])
            taps[task] = masked.mean((1, 2))
        return taps

    def _conv(self, x: jax.Array, features: int, size: int, name: str, train: bool) -> jax.Array:
        x = Conv(features, size, use_bias=self.norm is None, dtype=self.dtype, name=name)(x)
        return normalized(x, self.norm, f"{name}_norm", train, self.dtype, "task_attention")


def _shrunk(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, H, W, C] -> [B, *size, C], means of blocks."""
    if x.shape[1] % size[0] or x.shape[2] % size[1]:
        raise UserError(f"the backbone 'task_attention' goes from maps of {x.shape[1:3]} to maps of {size}, which does "
                        f"not divide them; choose taps whose sizes do")
    rows, columns = x.shape[1] // size[0], x.shape[2] // size[1]
    return x.reshape(x.shape[0], size[0], rows, size[1], columns, x.shape[-1]).mean((2, 4))
