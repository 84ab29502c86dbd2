"""Recipes that fine-tune everything and hold it to where it came from."""

from __future__ import annotations

from typing import Any

from transfer_jax.core.errors import UserError
from transfer_jax.recipes.setting import Config, Setting, moving, named, plan, probing
from transfer_jax.recipes.unfreezing import lp_ft

SOURCE = "source"  # the head with the published classifier


def l2_sp(setting: Setting, *, alpha: float = 0.01, beta: float = 0.01) -> Config:
    """Parameters pulled to their start by alpha / 2, the new head to zero by beta / 2, in place of weight decay (Li,
    Grandvalet & Davoine 2018)."""
    terms = {"to_start": {"kind": "l2_to_start", "alpha": alpha},
             "head_norm": {"kind": "l2_norm", "beta": beta, "include": "heads/.*"}}
    return plan(setting, {"l2_sp": moving(setting, terms=terms, init=setting.start, weight_decay=0.0)})


def bss(setting: Setting, *, strength: float = 1e-3, count: int = 1) -> Config:
    """Batch spectral shrinkage (Chen et al. 2019): the directions that a batch hardly uses are given up."""
    terms = {"shrinkage": {"kind": "batch_spectral_shrinkage", "stream": setting.stream, "strength": strength,
                           "count": count, "tap": setting.head.get("tap", "pooled")}}
    return plan(setting, {"bss": moving(setting, terms=terms, init=setting.start)})


def feature_distance(setting: Setting, *, alpha: float = 0.01, blocks: str = "") -> Config:
    """The outputs of the blocks held to those of the start, all channels alike.

    blocks: taps such as 'stage3+stage4'; empty: the last one.
    """
    chosen = named(setting.blocks, blocks, "recipe feature_distance") if blocks else setting.blocks[-1:]
    terms = {f"hold_{block.tap}": {"kind": "features_to_start", "stream": setting.stream, "tap": block.tap,
                                   "alpha": alpha} for block in chosen}
    return plan(setting, {"feature_distance": moving(setting, terms=terms, init=setting.start)})


def delta(setting: Setting, *, alpha: float = 0.01, blocks: str = "", head_share: float = 0.3,
          measured_examples: int = 1000) -> Config:
    """DELTA (Li et al. 2019): the outputs of the blocks held to those of the start, channels that the task would miss
    more than others. A head is trained first, for `head_share` of the length; it says what would be missed.

    blocks: as in `feature_distance`. measured_examples: how many the attention is measured on; None: all.
    """
    chosen = named(setting.blocks, blocks, "recipe delta") if blocks else setting.blocks[-1:]
    terms = {f"hold_{block.tap}": {"kind": "delta", "stream": setting.stream, "task": setting.name, "tap": block.tap,
                                   "alpha": alpha, "measured_examples": measured_examples} for block in chosen}
    return plan(setting, {"head": probing(setting, head_share, init=setting.start),
                          "delta": moving(setting, 1 - head_share, terms=terms, init="head")})


def ewc(setting: Setting, *, strength: float = 1.0, measured_on: str = "",
        measured_examples: int | None = 1000) -> Config:
    """Elastic weight consolidation (Kirkpatrick et al. 2017): parameters held the more, the more the published
    classifier's predictions depend on them. Needs `source_classes`.

    measured_on: a stream, best of the source's data; empty: the training images.
    """
    terms = {"consolidation": {"kind": "ewc", "strength": strength,
                               "measured_on": measured_on or setting.stream, "measured_examples": measured_examples}}
    return with_source_head(setting, "ewc", terms, group="frozen", weight_decay=0.0)


def co_tuning(setting: Setting, *, weight: float = 2.3, measured_examples: int | None = None,
              temperature: float = 1.0, calibrated_on: str = "", reverse: bool = False) -> Config:
    """Co-Tuning (You et al. 2020): the published classifier stays in use; it learns the source classes that each class
    of the new task looked like. Needs `source_classes`.

    temperature, calibrated_on (a stream of the source's task that it was not trained on), reverse: how the relationship
    is learned, see `objectives.statistics.relationship`.
    """
    usual = {"temperature": 1.0, "calibrated_on": "", "reverse": False}
    given = {"temperature": temperature, "calibrated_on": calibrated_on, "reverse": reverse}
    terms = {"co_tuning": {"kind": "co_tuning", "task": setting.name, "stream": setting.stream, "weight": weight,
                           "measured_examples": measured_examples,
                           **{key: value for key, value in given.items() if value != usual[key]}}}
    return with_source_head(setting, "co_tuning", terms)


def mixout(setting: Setting, *, p: float = 0.9) -> Config:
    """Each step runs with a share `p` of the pretrained parameters at their start (Lee, Cho & Kang 2020)."""
    return plan(setting, {"mixout": moving(setting, init=setting.start, weight_noise={"kind": "mixout", "p": p})})


def stoch_norm(setting: Setting, *, p: float = 0.5) -> Config:
    """StochNorm (Kou et al. 2020): each channel of a BatchNorm takes its batch's statistics with probability `p`, else
    the stored ones."""
    return plan(setting, {"stoch_norm": moving(setting, init=setting.start, stochastic_norm=p)})


def lwf(setting: Setting, *, weight: float = 1.0, temperature: float = 2.0) -> Config:
    """Learning without Forgetting (Li & Hoiem 2016): the published classifier's answers to the new images are held to
    what they were. Needs `source_classes`."""
    terms = {"remember": {"kind": "distillation", "stream": setting.stream, "weight": weight,
                          "temperature": temperature}}
    return with_source_head(setting, "lwf", terms)


def wise_ft(setting: Setting, *, share: float = 0.5, head_share: float = 0.5) -> Config:
    """`lp_ft`, then the mean of the probed and the fine-tuned model, of which the latter has `share` (Wortsman et al.
    2022, eq. 3): most of the gain on the target, less lost elsewhere."""
    if not 0 <= share <= 1:
        raise UserError(f"recipe wise_ft: share = {share} is no share; use a number from 0 to 1")
    found = lp_ft(setting, head_share=head_share)
    found["stages"]["mean"] = {"init": {"head": 1 - share, "finetune": share},
                               "evaluate": dict.fromkeys(setting.evaluate, setting.name)}
    return found


def with_source_head(setting: Setting, name: str, terms: dict[str, Any], group: str = "backbone",
                     **keys: Any) -> Config:
    """One stage of fine-tuning in which the published classifier, or the setting's own, is in the group `group`."""
    if not setting.source_head and not (setting.source_classes and setting.pretrained):
        raise UserError(f"recipe {name} needs the published classifier: pretrained weights that have one, and the "
                        f"number of its classes (source_classes); or source_head, a head of the experiment")
    head = setting.source_head or SOURCE
    terms = {term: {**found, "head": head} for term, found in terms.items()}
    found = moving(setting, terms=terms, init=setting.start, **keys)
    found["partition"] = ((f"heads/{head}/.*", group), *found["partition"])
    if setting.source_head:
        return plan(setting, {name: found})
    component = {"kind": "linear", "tap": setting.head.get("tap", "pooled"), "classes": setting.source_classes}
    return plan(setting, {name: found}, heads={SOURCE: component}, pretrained={"head": SOURCE})
