"""What the configs of adaptation share: one network, a labelled source, an unlabelled target, and recipes side by side.

The labels of the target score and choose nothing: its training stream has none, and what validators choose by is the
source's held-out labels and the target's images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from transfer_jax.core.errors import unknown
from transfer_jax.recipes import Setting, expand, grafted

RECIPES = {
    "source only": "source_only",
    "DANN": "dann", "CDAN": "cdan", "CDAN+E": "cdan(entropy=True)", "ADDA": "adda", "MCD": "mcd", "SWD": "swd",
    "MDD": "mdd", "WDGRL": "wdgrl", "BSP": "bsp", "VADA": "vada",
    "DAN": "dan", "JAN": "jan", "DSAN": "dsan", "Deep CORAL": "deep_coral", "CMD": "cmd", "DeepJDOT": "deep_jdot",
    "AFN": "afn", "hard AFN": "afn(radius=25.0)", "entropy": "minimum_entropy",
    "information": "information_maximization", "MCC": "mcc", "BNM": "bnm",
    "pseudo labels": "pseudo_label", "FixMatch": "fixmatch", "FlexMatch": "fixmatch(curriculum=True)",
    "mean teacher": "mean_teacher", "self-ensembling": "self_ensemble",
    "DANN with norms apart": "dsbn", "learned shift": "domain_shift",
    "AdaBN": "adabn", "T3A": "t3a", "TENT": "tent", "SHOT": "shot",
}


def recipes(chosen: str, where: str) -> dict[str, str]:
    """Name -> recipe of the names joined by '/'; all of them if there are none."""
    names = chosen.split("/") if chosen else list(RECIPES)
    for name in names:
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES, where)
    return {name: RECIPES[name] for name in names}


def experiment(name: str, told: Setting, chosen: Mapping[str, str], streams: Mapping[str, Any], seeds: int,
               **more: Any) -> ml_collections.ConfigDict:
    """The recipes side by side, each a row of the report."""
    validation = dict(target=told.target, source="source_test", task=told.name, examples=500)
    judged = dict(validation=validation, eval_every=max(1, told.steps // 2))
    stages: dict[str, Any] = {}
    heads: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    for method, text in chosen.items():
        plan = expand(text, told)
        prefix = "".join(c if c.isalnum() else "_" for c in method.lower())
        stages |= grafted(plan["stages"], prefix, title=method, tags=dict(method=method), **judged)
        heads |= plan["model"]["heads"]
        tasks |= plan["tasks"]
    return ml_collections.ConfigDict(dict(
        name=name, seeds=tuple(range(seeds)), model=dict(backbones=dict(backbone=dict(told.backbone)), heads=heads),
        tasks=tasks, streams=dict(streams), stages=stages,
        report=dict(title=name, streams=tuple(told.evaluate), reference="source only" if "source only" in chosen
                    else None), checkpoint_every=0, **more))
