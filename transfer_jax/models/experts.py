"""Mixtures of experts behind a tap: every task has features of its own, made of what all tasks train together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.models.taps import Backbone, Taps


class MultiGateExperts(Backbone):
    """Multi-gate mixture of experts (Ma et al. 2018, equations 5 to 7): f_k(x) = sum_i softmax(W_k x)_i expert_i(x).

    An expert is `hidden` dense layers with ReLU; gates have no bias, as theirs. Works on the last axis, so that maps
    [B, H, W, D] have a gate at each place. Taps: a name of `tasks` each.
    """

    tasks: tuple[str, ...] = ()
    experts: int = 4
    hidden: tuple[int, ...] = (64,)

    resumes = False  # all its taps come at once

    @property
    def tap_names(self) -> tuple[str, ...]:
        return self.tasks

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """[..., D] -> a tap [..., hidden[-1]] for each task."""
        x = x.astype(self.dtype)
        answers = jnp.stack([expert(x, self.hidden, self.dtype, f"expert{i}") for i in range(self.experts)], -1)
        return {task: mixed(answers, gate(x, self.experts, self.dtype, f"gate_{task}")) for task in self.tasks}


class ProgressiveExperts(Backbone):
    """Progressive layered extraction (Tang et al. 2020, sections 4.1 and 4.2): `own` experts for each task beside
    `shared` ones, in `levels` levels.

    In a level a task's gate, on the task's features of the level before, mixes its own and the shared experts; below
    the last level a shared gate mixes all of them. Each expert reads the features of its task, or the shared ones, from
    the level before. One level is their customized gate control (CGC). Taps: a name of `tasks` each.
    """

    tasks: tuple[str, ...] = ()
    own: int = 2
    shared: int = 2
    levels: int = 2
    hidden: tuple[int, ...] = (64,)

    resumes = False  # all its taps come at once

    @property
    def tap_names(self) -> tuple[str, ...]:
        return self.tasks

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Taps:
        """[..., D] -> a tap [..., hidden[-1]] for each task."""
        common = "shared"
        features = dict.fromkeys((*self.tasks, common), x.astype(self.dtype))
        counts = {**dict.fromkeys(self.tasks, self.own), common: self.shared}
        for level in range(1, self.levels + 1):
            answers = {name: [expert(features[name], self.hidden, self.dtype, f"level{level}_{name}_expert{i}")
                              for i in range(count)] for name, count in counts.items()}
            features = {name: self._mixed(level, name, value, answers) for name, value in features.items()
                        if name != common or level < self.levels}
        return {task: features[task] for task in self.tasks}

    def _mixed(self, level: int, name: str, value: jax.Array, answers: dict[str, list[jax.Array]]) -> jax.Array:
        used = [name, "shared"] if name != "shared" else [*self.tasks, "shared"]
        found = jnp.stack([answer for part in used for answer in answers[part]], -1)
        return mixed(found, gate(value, found.shape[-1], self.dtype, f"level{level}_gate_{name}"))


def expert(x: jax.Array, hidden: tuple[int, ...], dtype: jnp.dtype, name: str) -> jax.Array:
    """Dense layers with ReLU on the last axis."""
    for i, features in enumerate(hidden):
        x = nn.relu(nn.Dense(features, dtype=dtype, name=f"{name}_dense{i}")(x))
    return x


def gate(x: jax.Array, count: int, dtype: jnp.dtype, name: str) -> jax.Array:
    """Shares [..., count] of the experts, which sum to one."""
    return nn.softmax(nn.Dense(count, use_bias=False, dtype=dtype, name=name)(x))


def mixed(answers: jax.Array, shares: jax.Array) -> jax.Array:
    """[..., D, experts] and [..., experts] -> [..., D]."""
    return jnp.einsum("...de,...e->...d", answers, shares)
