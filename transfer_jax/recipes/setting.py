"""What a recipe is told, and the pieces that recipes are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.models.depth import Block, parameter_blocks
from transfer_jax.models.taps import Backbone

Config = dict[str, Any]
HEAD = "heads/.*"


@dataclass(frozen=True)
class Setting:
    """The model, the data and the budget that a recipe is written for.

    backbone: the component, such as dict(kind="resnet50"). pretrained: what `config.pretrained.backbone` may say;
        empty: the recipe's stages start from random parameters or from what `start` names.
    name: of the task and of its head. task, head: their components.
    stream: trained on. evaluate: streams scored after every stage.
    epochs or steps: length of the whole recipe, which shares it out among its stages.
    lr: of new parameters beside moving pretrained ones. backbone_lr: factor on it for pretrained parameters.
        probe_lr: factor on it for new parameters on a backbone that stands still.
    start: `init` of the first stage. source_classes: size of the published classifier, for recipes that use it;
        source_head: the model's own head that has it, where the source was trained in the same experiment.
    target: an unlabelled stream, for recipes that have one; strong: the same examples, augmented more. domains: those
        of `stream` and `target`. classes: how many there are, for recipes that build another classifier.
    stage: further keys of every stage (optimizer, weight_decay, clip_norm, ...).
    """

    backbone: Mapping[str, Any]
    pretrained: Mapping[str, Any] = field(default_factory=dict)
    name: str = "classify"
    task: Mapping[str, Any] = field(default_factory=lambda: {"kind": "classification"})
    head: Mapping[str, Any] = field(default_factory=lambda: {"kind": "linear"})
    stream: str = "train"
    evaluate: Sequence[str] = ("evaluation",)
    epochs: float | None = None
    steps: int | None = None
    lr: float = 1e-3
    backbone_lr: float = 0.1
    probe_lr: float = 10.0
    start: str = "fresh"
    source_classes: int = 0
    source_head: str = ""
    target: str = ""
    strong: str = ""
    domains: tuple[str, str] = ("source", "target")
    classes: int = 0
    stage: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError("a recipe needs its length: give epochs or steps, one of them")

    @property
    def module(self) -> Backbone:
        return build_backbone(Component(**self.backbone))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the backbone, input first."""
        if getattr(self.module, "scan", False):
            raise UserError("a backbone with scan=True stacks its blocks into one, so that no recipe can tell them "
                            "apart; set scan=False")
        return parameter_blocks(self.module)

    def length(self, share: float = 1.0) -> Config:
        """The duration of a stage that has this share of the recipe."""
        if self.steps is not None:
            return {"steps": max(1, round(share * self.steps))}
        return {"epochs": share * self.epochs}


def stage(setting: Setting, share: float = 1.0, terms: Mapping[str, Any] | None = None, **keys: Any) -> Config:
    """A supervised stage of the recipe: its keys come last, and so win."""
    task = {"kind": "task", "task": setting.name, "stream": setting.stream}
    return {"lr": setting.lr, "schedule": {"kind": "cosine"}, **setting.length(share),
            "objective": {"terms": {setting.name: task, **(terms or {})}},
            "evaluate": dict.fromkeys(setting.evaluate, setting.name), **setting.stage, **keys}


def plan(setting: Setting, stages: Mapping[str, Config], *, backbone: Mapping[str, Any] | None = None,
         head: Mapping[str, Any] | None = None, heads: Mapping[str, Any] | None = None,
         pretrained: Mapping[str, Any] | None = None) -> Config:
    """The part of an experiment that a recipe decides: model, pretrained, tasks and stages."""
    source = {**setting.pretrained, **(pretrained or {})} if setting.pretrained else {}
    return {"model": {"backbones": {"backbone": dict(backbone or setting.backbone)},
                      "heads": {setting.name: dict(head or setting.head), **(heads or {})}},
            "pretrained": {"backbone": source} if source else {},
            "tasks": {setting.name: {**setting.task, "head": setting.name}},
            "stages": {name: dict(found) for name, found in stages.items()}}


def probing(setting: Setting, share: float = 1.0, **keys: Any) -> Config:
    """A stage that trains new layers on the backbone as it stands."""
    return stage(setting, share, **{"lr": setting.probe_lr * setting.lr, "groups": {"head": {}},
                                    "partition": ((HEAD, "head"), (".*", "frozen")), **keys})


def moving(setting: Setting, share: float = 1.0, rules: Sequence[tuple[str, str]] = (), rest: str = "backbone",
           terms: Mapping[str, Any] | None = None, groups: Mapping[str, Any] | None = None, **keys: Any) -> Config:
    """A stage in which the head and pretrained parameters move, these at their own rate.

    rules: (regex, group) in front of the last one, which puts what is left into `rest`. groups: further settings by
    name; groups other than `head` have the backbone's rate unless they set another.
    """
    names = [group for _, group in rules if group != "frozen"] + ([rest] if rest != "frozen" else [])
    found = {"head": {}, **dict.fromkeys(names, {"lr_multiplier": setting.backbone_lr})}
    return stage(setting, share, terms, **{"partition": ((HEAD, "head"), *rules, (".*", rest)),
                                           "groups": {name: {**basic, **(groups or {}).get(name, {})}
                                                      for name, basic in found.items()}, **keys})


def in_parts(blocks: Sequence[Block], parts: int, where: str) -> list[tuple[Block, ...]]:
    """Neighbouring blocks in `parts` portions of about equal number, input first; 0: every block alone."""
    if not 0 <= parts <= len(blocks):
        raise UserError(f"{where}: parts = {parts}, but the backbone has {len(blocks)} blocks; use 1 to {len(blocks)}, "
                        f"or 0 for every block alone")
    count = parts or len(blocks)
    edges = [math.floor(i * len(blocks) / count) for i in range(count + 1)]
    return [tuple(blocks[a:b]) for a, b in zip(edges, edges[1:], strict=False)]


def pattern(blocks: Sequence[Block]) -> str:
    """One regex of all parameters of the blocks."""
    return Block("", tuple(module for block in blocks for module in block.modules)).pattern()


def named(blocks: Sequence[Block], names: str | Sequence[str], where: str) -> list[Block]:
    """The blocks of these names: taps such as 'stage1', several of them joined by '+'."""
    wanted = names.split("+") if isinstance(names, str) else list(names)
    known = {block.tap: block for block in blocks}
    for name in wanted:
        if name not in known:
            raise unknown("block", name, known, where)
    return [known[name] for name in wanted]
