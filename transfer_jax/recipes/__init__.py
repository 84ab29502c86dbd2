"""Recipes: named ways to transfer, each written out as the stages that it consists of.

    plan = expand("gradual_unfreeze(parts=3)", Setting(backbone=dict(kind="resnet18"), epochs=10))
    config = ConfigDict(dict(name="mine", streams=..., **plan))

A recipe is a function `(setting, *, arguments) -> {model, pretrained, tasks, stages}`, plain entries of a config: all
of it lands in `config.json`, can be edited in the config file and overridden on the command line.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, bind
from transfer_jax.recipes import adaptation
from transfer_jax.recipes.few_parameters import adapter, bitfit, dora, ia3, lora, norm_tuning, prefix, prompts, ssf
from transfer_jax.recipes.setting import Config, Setting
from transfer_jax.recipes.situations import situation
from transfer_jax.recipes.toward_source import (
    bss,
    co_tuning,
    delta,
    ewc,
    feature_distance,
    l2_sp,
    lwf,
    mixout,
    stoch_norm,
    wise_ft,
)
from transfer_jax.recipes.unfreezing import (
    chain_thaw,
    discriminative,
    finetune,
    frozen,
    gradual_unfreeze,
    layer_decay,
    linear_probe,
    lp_ft,
    partial,
    scratch,
    six_steps,
    surgical,
    truncate,
)

RECIPES = {recipe.__name__: recipe for recipe in (
    scratch, linear_probe, frozen, partial, truncate, finetune, lp_ft, six_steps, gradual_unfreeze, discriminative,
    layer_decay, chain_thaw, surgical, l2_sp, bss, feature_distance, delta, ewc, co_tuning, mixout, stoch_norm,
    lwf, wise_ft, lora, dora, ia3, ssf, adapter,
    prompts, prefix, bitfit, norm_tuning, situation)}

# For a target without labels: `Setting.target`.
ADAPTATION = {recipe.__name__: recipe for recipe in (
    adaptation.source_only, adaptation.dann, adaptation.bsp, adaptation.cdan, adaptation.mdd, adaptation.mcd,
    adaptation.swd, adaptation.mdan, adaptation.wdgrl, adaptation.adda, adaptation.dan, adaptation.jan,
    adaptation.dsan, adaptation.deep_coral, adaptation.cmd, adaptation.deep_jdot, adaptation.afn,
    adaptation.minimum_entropy, adaptation.information_maximization, adaptation.mcc, adaptation.bnm,
    adaptation.vada, adaptation.pseudo_label, adaptation.fixmatch, adaptation.mean_teacher,
    adaptation.self_ensemble, adaptation.dsbn, adaptation.domain_shift, adaptation.adabn, adaptation.t3a,
    adaptation.tent, adaptation.shot)}

__all__ = ["ADAPTATION", "RECIPES", "Setting", "expand"]


def expand(recipe: str, setting: Setting, **arguments: Any) -> Config:
    """The recipe written out.

    Args:
      recipe: a name of `RECIPES`, with arguments if you like: 'lora(rank=4;alpha=8)' (semicolons, so that it can stand
        in a config argument).
      setting: the model, the data, the budget.
      arguments: more arguments.

    Raises:
      UserError: for an unknown recipe or argument, or one that does not fit the backbone.
    """
    name, given = parse(recipe)
    if "kind" in given:
        raise UserError(f"recipe {recipe!r}: no recipe has an argument 'kind'")
    found = bind({**RECIPES, **ADAPTATION}, Component(kind=name, **given, **arguments), "recipe", supplied=("setting",))
    return found(setting)


def grafted(stages: Config, prefix: str, **keys: Any) -> Config:
    """The stages of a recipe under names that begin with `prefix`, to stand beside those of others; `keys` are given to
    the last of them."""
    names = {name: f"{prefix}_{name}" if len(stages) > 1 else prefix for name in stages}

    def renamed(init: Any) -> Any:
        if isinstance(init, str):
            return names.get(init, init)
        return {names.get(name, name): share for name, share in init.items()}

    found = {names[name]: {**stage, **({"init": renamed(stage["init"])} if "init" in stage else {})}
             for name, stage in stages.items()}
    last = names[list(stages)[-1]]
    return {**found, last: {**found[last], **keys}}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """'name(key=value;key=value)' -> the name and the arguments; values are Python literals, anything else a string."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    if not match:
        raise UserError(f"recipe {text!r} is not of the form NAME or NAME(key=value;key=value)")
    arguments = {}
    for item in filter(None, (match[2] or "").split(";")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier():
            raise UserError(f"recipe {text!r}: {item!r} is not of the form key=value")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return match[1], arguments
