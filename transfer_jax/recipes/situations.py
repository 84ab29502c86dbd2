"""The four situations of transfer: little or much data, like the source's or unlike it."""

from __future__ import annotations

from transfer_jax.core.errors import unknown
from transfer_jax.recipes.setting import Config, Setting
from transfer_jax.recipes.unfreezing import finetune, linear_probe, lp_ft, truncate

SITUATIONS = ("small_similar", "small_different", "large_similar", "large_different")


def situation(setting: Setting, *, data: str) -> Config:
    """The recipe that textbooks name for a situation (after Karpathy's notes for CS231n and Yosinski et al. 2014):

    small_similar: a linear head on frozen features. small_different: a head on features from the middle of the
    network. large_similar: probing, then fine-tuning. large_different: full training from pretrained values, all at one
    rate. What is small and what is similar, `python -m transfer_jax.advise` measures.
    """
    if data not in SITUATIONS:
        raise unknown("situation", data, SITUATIONS, "recipe situation")
    if data == "small_similar":
        return linear_probe(setting)
    if data == "small_different":
        return truncate(setting, tap=middle_tap(setting))
    if data == "large_similar":
        return lp_ft(setting)
    found = finetune(setting)
    found["stages"]["finetune"]["groups"]["backbone"] = {}
    return found


def middle_tap(setting: Setting) -> str:
    """The tap behind two thirds of the blocks."""
    blocks = setting.blocks
    return blocks[max(0, round(len(blocks) * 2 / 3) - 1)].tap
