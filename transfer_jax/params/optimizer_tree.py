"""One optax tree for a whole stage, and the table that shows what it does before training starts.

Trainable leaves are a flat dict `path -> array`. Each update of an objective moves some groups; the state of the
others is carried through untouched, so unfreezing and alternating updates never change the tree's structure.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, bind, lookup
from transfer_jax.params.optimizers import LISTENING, OPTIMIZERS, SCHEDULE_FREE
from transfer_jax.params.partition import FROZEN, GroupSpec, Partition
from transfer_jax.params.schedules import SCHEDULES

Flat = dict[str, jax.Array]


@dataclass(frozen=True)
class GroupDefaults:
    """The stage's own settings, used by every group that does not set its own."""

    optimizer: Component
    lr: float
    schedule: Component
    warmup_steps: int
    weight_decay: float


def peak_rates(groups: Mapping[str, GroupSpec], defaults: GroupDefaults) -> dict[str, float]:
    """The highest learning rate of every group, before its schedule."""
    return {name: (defaults.lr if group.lr is None else group.lr) * group.lr_multiplier
            for name, group in groups.items()}


def learning_rate(group: GroupSpec, defaults: GroupDefaults, total_steps: int,
                  peak: float | jax.Array) -> optax.Schedule:
    """The learning rate of a group as a function of the stage's step (float32 scalar).

    Linear warm-up over the first steps of the group's own life, then the schedule over the stage's remaining steps.
    """
    spec = group.schedule or defaults.schedule
    warmup = defaults.warmup_steps if group.warmup_steps is None else group.warmup_steps
    lookup({**SCHEDULES, **LISTENING}, spec.kind, "schedule")
    spec = Component(kind="constant") if spec.kind in LISTENING else spec
    factor = bind(SCHEDULES, spec, "schedule", supplied=("step", "total_steps"))
    start = group.unfreeze_at

    def schedule(step: jax.Array) -> jax.Array:
        warm = jnp.minimum((step - start + 1) / (warmup + 1), 1.0)
        return peak * warm * factor(jnp.maximum(step - warmup, 0), total_steps - warmup)

    return schedule


def make_optimizer(partition: Partition, defaults: GroupDefaults, total_steps: int, depths: Mapping[str, int],
                   rates: Mapping[str, float | jax.Array]) -> optax.GradientTransformation:
    """`optax.multi_transform` over the groups of the partition; frozen subtrees are set to zero and hold no state.

    Args:
      partition: group of every path.
      defaults: settings that groups inherit.
      total_steps: length of the stage, for the schedules.
      depths: layer number of every path, 0 at the input, for layer-wise learning-rate decay.
      rates: the peak learning rate of every group; may be traced, so that stages that differ only in their learning
        rates share one compiled program, and seeds may have their own.
    """
    transforms = {name: _group_transform(name, partition, defaults, total_steps, depths, rates[name])
                  for name in partition.groups}
    transforms[FROZEN] = optax.set_to_zero()
    return optax.multi_transform(transforms, lambda tree: {path: _label(partition, path) for path in tree})


def _label(partition: Partition, path: str) -> str:
    group = partition.group_of[path]
    return group if group in partition.groups else FROZEN


def _group_transform(name: str, partition: Partition, defaults: GroupDefaults, total_steps: int,
                     depths: Mapping[str, int], peak: float | jax.Array) -> optax.GradientTransformation:
    group = partition.groups[name]
    schedule = learning_rate(group, defaults, total_steps, peak)
    optimizer = bind(OPTIMIZERS, group.optimizer or defaults.optimizer, "optimizer", f"group {name!r}",
                     supplied=("learning_rate", "weight_decay", "decays"))
    decay = defaults.weight_decay if group.weight_decay is None else group.weight_decay
    # The count of an optimizer starts when its group unfreezes; schedules speak of the stage's steps.
    transform = optimizer(lambda count: schedule(count + group.unfreeze_at), decay, _decays)
    kind, listening = (group.optimizer or defaults.optimizer).kind, group.schedule or defaults.schedule
    if kind in SCHEDULE_FREE and (group.layer_decay != 1.0 or listening.kind in LISTENING):
        raise UserError(f"group {name!r}: the averages of {kind} hold for the steps that it makes, which layer_decay "
                        f"and {', '.join(LISTENING)} would change; leave them out or choose another optimizer")
    if listening.kind in LISTENING:
        transform = optax.chain(transform, bind(LISTENING, listening, "schedule", f"group {name!r}")())
    if group.layer_decay == 1.0:
        return transform
    top = max(depths.values(), default=0)
    factors = {path: group.layer_decay ** (top - depths[path]) for path in partition.paths(name)}
    return optax.chain(transform, _scale_each(factors))


def _decays(tree: Any) -> Any:
    """Weight decay is for matrices and kernels; biases, norms and scalars are left alone (He et al. 2019)."""
    return jax.tree.map(lambda leaf: getattr(leaf, "ndim", 0) > 1, tree)


def _scale_each(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates: Mapping[str, Any], state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return {path: jax.tree.map(functools.partial(operator.mul, factors.get(path, 1.0)), leaf)
                for path, leaf in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def apply_groups(optimizer: optax.GradientTransformation, grads: Flat, state: Any, params: Flat,
                 partition: Partition, groups: frozenset[str], loss: Any = None) -> tuple[Flat, Any]:
    """One optimizer step for the named groups; parameters and state of all others are returned as they were.

    Args:
      grads: gradients of exactly the leaves in `groups`.
      state, params: the whole optimizer state and all trainable leaves.
      loss: for schedules that listen to it.
    """
    full = {path: grads.get(path, jnp.zeros_like(leaf)) for path, leaf in params.items()}
    updates, moved = optimizer.update(full, state, params, value=loss)
    inner = {name: moved.inner_states[name] if name in groups else old for name, old in state.inner_states.items()}
    new = {path: optax.apply_updates(leaf, updates[path]) if partition.group_of[path] in groups else leaf
           for path, leaf in params.items()}
    return new, state._replace(inner_states=inner)


def averaged_leaves(partition: Partition, defaults: GroupDefaults, state: Any, params: Flat) -> Flat:
    """All trainable leaves, those of schedule-free groups as the averages x = (y - (1 - beta) z) / beta."""
    found = dict(params)
    for name, group in partition.groups.items():
        if (group.optimizer or defaults.optimizer).kind in SCHEDULE_FREE:
            own = state.inner_states[name].inner_state
            found |= {path: (params[path] - (1 - own.b1) * own.z[path]) / own.b1 for path in partition.paths(name)}
    return found


def state_bytes(tree: Any) -> int:
    """Bytes held by the arrays (or shapes) of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def group_table(partition: Partition, params: Mapping[str, Any], defaults: GroupDefaults,
                optimizer: optax.GradientTransformation) -> list[dict[str, Any]]:
    """One row a group: tensors, parameters, share, learning rate, weight decay, optimizer bytes; for one seed.

    Args:
      params: path -> array or ShapeDtypeStruct of every leaf of the model, without a seed axis.
    """
    trainable = {path: params[path] for path in partition.trainable}
    state = jax.eval_shape(optimizer.init, trainable)
    total = sum(leaf.size for leaf in params.values())
    rates = peak_rates(partition.groups, defaults)
    rows = []
    for name in dict.fromkeys(partition.group_of.values()):
        paths = partition.paths(name)
        count = sum(params[path].size for path in paths)
        row = {"group": name, "tensors": len(paths), "parameters": count, "share": count / max(total, 1),
               "lr": 0.0, "weight_decay": 0.0, "optimizer": "", "optimizer_bytes": 0, "unfreeze_at": 0,
               "frozen": name not in partition.groups}
        if name in partition.groups:
            group = partition.groups[name]
            row["lr"] = rates[name]
            row["weight_decay"] = defaults.weight_decay if group.weight_decay is None else group.weight_decay
            row["optimizer"] = (group.optimizer or defaults.optimizer).kind
            row["optimizer_bytes"] = state_bytes(state.inner_states[name])
            row["unfreeze_at"] = group.unfreeze_at
        rows.append(row)
    return rows
