"""Recipes that leave the backbone as it is but for a few leaves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.conversion import leaf_shapes
from transfer_jax.recipes.setting import HEAD, Config, Setting, plan, stage


def lora(setting: Setting, *, rank: int = 8, alpha: float = 8.0, scaling: str = "rank", targets: str = "") -> Config:
    """Low-rank updates of the kernels (Hu et al. 2022; scaling="root": rsLoRA, Kalajdzievski 2023).

    targets: a regex of module paths; empty: every dense layer and convolution.
    """
    return _new_leaves(setting, "lora", targets or modules_with(setting, "kernel"), rank=rank, alpha=alpha,
                       scaling=scaling)


def dora(setting: Setting, *, rank: int = 8, alpha: float = 8.0, targets: str = "") -> Config:
    """LoRA with a learned length of every output's weights (Liu et al. 2024); arguments as in `lora`."""
    return _new_leaves(setting, "dora", targets or modules_with(setting, "kernel"), rank=rank, alpha=alpha)


def ia3(setting: Setting, *, targets: str = "") -> Config:
    """Learned factors on the outputs of layers (Liu et al. 2022); targets as in `lora`."""
    return _new_leaves(setting, "ia3", targets or modules_with(setting, "kernel"))


def ssf(setting: Setting, *, targets: str = "") -> Config:
    """Learned factors and shifts behind layers (Lian et al. 2022); targets: empty: every layer that has a bias."""
    return _new_leaves(setting, "ssf", targets or modules_with(setting, "bias"))


def adapter(setting: Setting, *, width: int = 16, placement: str = "serial", targets: str = "") -> Config:
    """Small networks behind modules, or beside them with placement="parallel" (Houlsby et al. 2019; He et al. 2022).

    targets: a regex of module paths that take one array to one; empty: the attention and perceptron of every block, or
    every convolution of a network without such.
    """
    blocks = r"backbone/block\d+/(attention|mlp)"
    if not targets:
        modules = {"backbone/" + "/".join(path.split("/")[:2]) for path in leaf_shapes(setting.module)}
        targets = blocks if any(re.fullmatch(blocks, module) for module in modules) else \
            modules_with(setting, "kernel")
    return _new_leaves(setting, "adapter", targets, width=width, placement=placement)


def prompts(setting: Setting, *, count: int = 8, deep: bool = False) -> Config:
    """Learned tokens in front of a transformer's own, with `deep` (which Swin needs) in every block (Jia et al. 2022;
    Lester et al. 2021)."""
    return _new_leaves(setting, "prompts", "backbone", count=count, deep=deep)


def prefix(setting: Setting, *, count: int = 8, targets: str = "") -> Config:
    """Learned keys and values in front of those of attention layers (Li & Liang 2021).

    targets: a regex of attention layers; empty: all.
    """
    layers = {path.removesuffix("/query/kernel") for path in leaf_shapes(setting.module)
              if path.endswith("/query/kernel")}
    if not layers:
        raise UserError(f"recipe prefix: the backbone {setting.backbone['kind']!r} has no attention layers; choose "
                        f"another recipe")
    return _new_leaves(setting, "prefix", targets or "backbone/(" + "|".join(sorted(layers)) + ")", count=count)


def bitfit(setting: Setting) -> Config:
    """Only biases move, and a new head (Ben Zaken et al. 2022). Norms run on stored statistics."""
    return _own_leaves(setting, "bitfit", r"backbone/(.*/)?bias", batch_norm="stored")


def norm_tuning(setting: Setting) -> Config:
    """Only the factors and shifts of normalisation layers move, and a new head (Frankle, Schwab & Morcos 2021)."""
    return _own_leaves(setting, "norm_tuning", f"{modules_with(setting, 'scale')}/(scale|bias)")


def modules_with(setting: Setting, leaf: str) -> str:
    """A regex of the backbone's modules that have the leaf, by the last words of their paths."""
    paths = [path.rpartition("/") for path in leaf_shapes(setting.module)]
    having = {module for module, _, name in paths if name == leaf}
    if not having:
        raise UserError(f"no layer of the backbone {setting.backbone['kind']!r} has a {leaf!r}; choose another recipe")
    others = {module.rpartition("/")[2] for module, _, name in paths if module not in having}
    words = list(dict.fromkeys(module.rpartition("/")[2] for module in sorted(having)))
    if set(words) & others:  # the same name with and without it: whole paths
        return "backbone/(" + "|".join(map(re.escape, sorted(having))) + ")"
    return "backbone/(.*/)?(" + "|".join(map(re.escape, words)) + ")"


def _new_leaves(setting: Setting, kind: str, targets: str | Sequence[str], **arguments: Any) -> Config:
    found = stage(setting, init=setting.start, peft={"small": {"kind": kind, "targets": (targets,), **arguments}},
                  partition=(("peft/.*", "small"), (HEAD, "head"), (".*", "frozen")), groups={"small": {}, "head": {}})
    return plan(setting, {kind: found})


def _own_leaves(setting: Setting, name: str, pattern: str, **keys: Any) -> Config:
    found = stage(setting, init=setting.start, partition=((HEAD, "head"), (pattern, "small"), (".*", "frozen")),
                  groups={"head": {}, "small": {}}, **keys)
    return plan(setting, {name: found})
