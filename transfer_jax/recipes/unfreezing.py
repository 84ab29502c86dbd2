"""Recipes that differ in what moves, when, and how fast."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.recipes.setting import Config, Setting, in_parts, moving, named, pattern, plan, probing, stage


def scratch(setting: Setting, *, initializer: str = "") -> Config:
    """Everything from random parameters, by the layers' own initialisers or by a named one (xavier_uniform, he_normal,
    uniform, constant, ...): the baseline of every transfer."""
    drawn = {"initializer": {"kind": initializer}} if initializer else {}
    return plan(setting, {"scratch": stage(setting, init="random", **drawn)})


def linear_probe(setting: Setting) -> Config:
    """A linear head on the frozen backbone, which runs on its stored statistics."""
    return plan(setting, {"linear_probe": probing(setting, init=setting.start)})


def frozen(setting: Setting, *, hidden: Sequence[int] = (128,), dropout: float = 0.0) -> Config:
    """New hidden layers and a head on the frozen backbone: the pretrained model as a generator of features."""
    head = {"kind": "mlp", "hidden": tuple(hidden), "dropout": dropout, "tap": setting.head.get("tap", "pooled")}
    return plan(setting, {"frozen": probing(setting, init=setting.start, lr=setting.lr)}, head=head)


def partial(setting: Setting, *, k: int = 1) -> Config:
    """The last `k` blocks and a new head move, all before them is frozen (Yosinski et al. 2014)."""
    blocks = setting.blocks
    if not 0 < k < len(blocks):
        raise UserError(f"recipe partial: k = {k}, but the backbone has {len(blocks)} blocks; use 1 to "
                        f"{len(blocks) - 1} (0 is linear_probe, all is finetune)")
    rules = ((pattern(blocks[-k:]), "top"),)
    return plan(setting, {"partial": moving(setting, rules=rules, rest="frozen", init=setting.start)})


def truncate(setting: Setting, *, tap: str, hidden: Sequence[int] = ()) -> Config:
    """The network cut behind `tap`, whose maps are averaged; the rest frozen, and a head (with `hidden` layers) on it.

    For data unlike the source: what later blocks compute is about the source (Yosinski et al. 2014)."""
    names = setting.module.tap_names
    if tap not in names:
        raise unknown("tap", tap, names, "recipe truncate")
    head = {"kind": "mlp", "hidden": tuple(hidden)} if hidden else {"kind": "linear"}
    return plan(setting, {"truncate": probing(setting, init=setting.start)},
                backbone={**setting.backbone, "until": tap}, head={**head, "tap": tap, "pool": "mean"})


def finetune(setting: Setting) -> Config:
    """A new head and everything pretrained move at once, the backbone at `backbone_lr` times the rate."""
    return plan(setting, {"finetune": moving(setting, init=setting.start)})


def lp_ft(setting: Setting, *, head_share: float = 0.5) -> Config:
    """Linear probing, then fine-tuning from that head (Kumar et al. 2022): features are not distorted by a random one.

    The head has `head_share` of the length."""
    _share("lp_ft", head_share)
    return plan(setting, {"head": probing(setting, head_share, init=setting.start),
                          "finetune": moving(setting, 1 - head_share, init="head")})


def six_steps(setting: Setting, *, hidden: Sequence[int] = (128,), dropout: float = 0.2, k: int = 0,
              head_share: float = 0.5, low: float = 0.01) -> Config:
    """Take a pretrained model, cut its head, freeze the rest, add new layers, train them, then unfreeze the last `k`
    blocks (0: all) at `low` times the rate."""
    _share("six_steps", head_share)
    head = {"kind": "mlp", "hidden": tuple(hidden), "dropout": dropout, "tap": setting.head.get("tap", "pooled")}
    blocks, very_low = setting.blocks, {"lr_multiplier": low}
    if not 0 <= k <= len(blocks):
        raise UserError(f"recipe six_steps: k = {k}, but the backbone has {len(blocks)} blocks; use 0 (all) to "
                        f"{len(blocks)}")
    top = ((pattern(blocks[-k:]), "top"),) if 0 < k < len(blocks) else ()
    unfreeze = moving(setting, 1 - head_share, rules=top, rest="frozen" if top else "top", init="new_layers",
                      groups={"top": very_low, "head": very_low})
    return plan(setting, {"new_layers": probing(setting, head_share, init=setting.start, lr=setting.lr),
                          "unfreeze": unfreeze}, head=head)


def gradual_unfreeze(setting: Setting, *, parts: int = 4, factor: float = 1.0) -> Config:
    """The head moves first, then one portion of the blocks after the other joins from the top, in equal times (ULMFiT;
    Howard & Ruder 2018, section 3.3).

    parts: portions, each compiled once; 0: every block alone. factor: each portion's rate is that of the one above it
    divided by this (theirs: 2.6).
    """
    portions = in_parts(setting.blocks, parts, "recipe gradual_unfreeze")
    rules = [(pattern(blocks), f"part{i}") for i, blocks in enumerate(portions)]
    groups = {f"part{i}": {"lr_multiplier": setting.backbone_lr / factor ** above,
                           "unfreeze_at": round((above + 1) / (len(portions) + 1), 6)}
              for i in range(len(portions)) for above in [len(portions) - 1 - i]}
    (_, last), front = rules[0], rules[1:]
    return plan(setting, {"gradual_unfreeze": moving(setting, rules=front, rest=last, groups=groups,
                                                     init=setting.start)})


def discriminative(setting: Setting, *, parts: int = 0, factor: float = 2.6) -> Config:
    """Every portion of the blocks has its own rate, that of the one above divided by `factor`, with slanted triangular
    schedules (ULMFiT; Howard & Ruder 2018, section 3.2; there the top layer's rate is the head's).

    parts: 0: every block is a portion.
    """
    portions = in_parts(setting.blocks, parts, "recipe discriminative")
    rules = [(pattern(blocks), f"part{i}") for i, blocks in enumerate(portions)]
    groups = {name: {"lr_multiplier": factor ** (i - len(portions))} for i, (_, name) in enumerate(rules)}
    (_, last), front = rules[0], rules[1:]
    return plan(setting, {"discriminative": moving(setting, rules=front, rest=last, groups=groups, init=setting.start,
                                                   schedule={"kind": "slanted_triangular"})})


def layer_decay(setting: Setting, *, decay: float = 0.75) -> Config:
    """All at once; a block's rate is `decay` times that of the one above it, and the head's is the highest (Clark et
    al. 2020, ELECTRA; Bao et al. 2022, BEiT)."""
    found = stage(setting, init=setting.start, partition=((".*", "all"),), groups={"all": {"layer_decay": decay}})
    return plan(setting, {"layer_decay": found})


def chain_thaw(setting: Setting, *, parts: int = 4) -> Config:
    """The head, then each portion of the blocks alone from the input on, then everything (Felbo et al. 2017, section
    3.3), in equal times."""
    portions = in_parts(setting.blocks, parts, "recipe chain_thaw")
    share = 1 / (len(portions) + 2)
    stages, before = {"head": probing(setting, share, init=setting.start)}, "head"
    for i, blocks in enumerate(portions):
        stages[f"part{i}"] = stage(setting, share, init=before, lr=setting.backbone_lr * setting.lr,
                                   partition=((pattern(blocks), "part"), (".*", "frozen")), groups={"part": {}})
        before = f"part{i}"
    return plan(setting, {**stages, "all": moving(setting, share, init=before)})


def surgical(setting: Setting, *, blocks: str) -> Config:
    """Only the named blocks ('stage1', 'stage1+stage2') move, and a new head: early ones for a shift of the input,
    late ones for one of the output (Lee et al. 2023, "Surgical fine-tuning")."""
    chosen = named(setting.blocks, blocks, "recipe surgical")
    if len(chosen) == len(setting.blocks):
        raise UserError("recipe surgical: all blocks are named, so nothing stays frozen; use finetune")
    return plan(setting, {"surgical": moving(setting, rules=((pattern(chosen), "blocks"),), rest="frozen",
                                             init=setting.start)})


def _share(recipe: str, share: float) -> None:
    if not 0 < share < 1:
        raise UserError(f"recipe {recipe}: head_share = {share} is no share; use a number between 0 and 1")
