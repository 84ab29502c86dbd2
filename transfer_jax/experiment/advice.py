"""What is advised from what was measured: the situation, a recipe, its reasons, and what else is worth trying."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from transfer_jax.evaluation import probes

SMALL = 50  # examples a class below which a data set counts as small
ONE_RATE = "situation(data=large_different)"
ALTERNATIVES = {"small": ("linear_probe", "lora(rank=4)", "lp_ft", ONE_RATE),
                "large": ("lp_ft", ONE_RATE, "layer_decay", "linear_probe")}


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    examples, classes: of the training stream. chance: share of its most frequent class. by_tap: tap -> cross-validated
    accuracy of a linear probe, input side first. halved: the same on the last tap with half of the examples. distance:
    proxy A-distance to the source's examples, from 0 (alike) to 2 (told apart without error); None without such a
    stream. scores: transferability.
    """

    examples: int
    classes: int
    chance: float
    by_tap: Mapping[str, probes.Row]
    halved: float
    distance: float | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Advice:
    """A recipe with its reasons, and the recipes worth comparing with, that of the rule first."""

    situation: str
    recipe: str
    reasons: tuple[str, ...]
    candidates: tuple[str, ...]
    evidence: Evidence
    verified: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # recipe -> accuracy of each seed


def advise(evidence: Evidence, small: int = SMALL) -> Advice:
    """The situation and its recipe, from the evidence alone.

    Data are small below `small` examples a class. They are like the source if the last features answer as well as
    any earlier ones do, within one standard error; else the network is best cut where features answer best. Features
    that answer no better than always the most frequent class would, within two standard errors, are of no use as they
    are, at any depth: then all has to move, however few the examples.
    """
    per_class = evidence.examples / evidence.classes
    last, best = list(evidence.by_tap)[-1], max(evidence.by_tap, key=lambda tap: evidence.by_tap[tap].accuracy)
    top, top_best = evidence.by_tap[last].accuracy, evidence.by_tap[best].accuracy
    error = math.sqrt(max(top_best * (1 - top_best), 1e-12) / evidence.examples)
    size = "small" if per_class < small else "large"
    fit = "similar" if top >= top_best - error else "different"
    if top_best - 2 * error <= evidence.chance:
        fit = "useless"
    recipe = {("small", "similar"): "linear_probe", ("small", "different"): f"truncate(tap={best})",
              ("large", "similar"): "lp_ft"}.get((size, fit), ONE_RATE)
    features = {
        "useless": f"the best features ({best}) answer {top_best:.3f} right, always the most frequent class would "
                   f"{evidence.chance:.3f}: as they are, they tell nothing",
        "similar": f"the last features ({last}) answer {top:.3f} right, as well as those of any depth within the "
                   f"error of {error:.3f}: what the source taught fits",
        "different": f"the last features ({last}) answer {top:.3f} right, those of {best} {top_best:.3f}: later layers "
                     f"are about the source"}
    reasons = [
        f"{evidence.examples} examples of {evidence.classes} classes, {per_class:.0f} a class: "
        f"{'few' if size == 'small' else 'many'} (the line is drawn at {small})",
        f"with half of them a linear probe answers {evidence.halved:.3f} right, with all {top:.3f}: more data "
        f"{'would still help' if top - evidence.halved > error else 'would change little'}", features[fit]]
    if evidence.distance is not None:
        reasons.append(f"a linear classifier tells source and target apart at a distance of {evidence.distance:.2f} "
                       f"(0 alike, 2 without error)")
    reasons.append(_WHY.get((size, fit), _WHY["useless"]))
    candidates = dict.fromkeys([recipe, *ALTERNATIVES[size]])
    situation = f"{size}_{'similar' if fit == 'similar' else 'different'}"
    return Advice(situation, recipe, tuple(reasons), tuple(candidates), evidence)


_WHY = {
    ("small", "similar"): "few examples cannot move many parameters well, and need not: train a linear head on "
                          "frozen features",
    ("small", "different"): "few examples cannot move many parameters well: cut the network where its features fit "
                            "best and train a head there",
    ("large", "similar"): "enough examples to move everything, and features worth keeping: train the head first, then "
                          "all of it gently",
    ("large", "different"): "enough examples to move everything, and features that must change: start from the "
                            "pretrained values and train all of it at one rate",
    "useless": "features that tell nothing must change: start from the pretrained values and train all of it at one "
               "rate"}


def chosen(advice: Advice, verified: Mapping[str, tuple[float, ...]]) -> Advice:
    """The advice with what its candidates reached when they were tried: the best mean is its recipe."""
    means = {recipe: float(np.mean(verified[recipe])) for recipe in advice.candidates}
    best = max(means, key=lambda recipe: -math.inf if math.isnan(means[recipe]) else means[recipe])
    reason = f"trained briefly, {best} answers {means[best]:.3f} of the held-out fifth right" + (
        "" if best == advice.recipe else f", {advice.recipe} {means[advice.recipe]:.3f}")
    return dataclasses.replace(advice, recipe=best, reasons=(*advice.reasons, reason),
                               verified={recipe: verified[recipe] for recipe in advice.candidates})
