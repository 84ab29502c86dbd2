"""Photographs, paintings, cartoons and sketches: a published network adapts to a domain of PACS without its labels.

    python -m transfer_jax.train --config configs/adaptation/pacs.py:pair=photo_sketch --workdir runs/photo_sketch
"""

from __future__ import annotations

import ml_collections
from pairs import experiment, recipes
from sets import SOURCES, WEIGHTS, pacs

from transfer_jax.core.config import parse_arg
from transfer_jax.core.errors import unknown
from transfer_jax.recipes import Setting

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CHOSEN = "source only+DANN+DAN+MCC+AdaBN"


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`pair`: source_target of DOMAINS (art for art_painting); `recipes`: names of RECIPES joined by '+'; `steps` of
    each recipe, `seeds` (how many). All images of the target are seen without labels, and all score, as is usual."""
    args = parse_arg(arg, pair="photo_sketch", recipes=CHOSEN, steps=100, seeds=3)
    names = [{"art": "art_painting"}.get(name, name) for name in args.pair.split("_")]
    if len(names) != 2:
        raise unknown("pair", args.pair, ("photo_sketch", "art_cartoon"), repr(arg))
    for name in names:
        if name not in DOMAINS:
            raise unknown("domain", name, DOMAINS, repr(arg))
    file, backbone, shown = SOURCES["mobilenet"]

    def stream(domain: str, **more: object) -> dict:
        return dict(data=dict(kind="folder", path=str(pacs() / domain)), domain=domain, batch_size=32, **shown, **more)

    source, target = names
    moved = (dict(kind="flip"), dict(kind="crop", padding=8))
    unlabelled = stream(target, labelled=False)
    streams = dict(source=stream(source, per_class="[:75%]", split_seed=0, augment=moved), target=unlabelled,
                   strong=dict(unlabelled, follows="target", augment=(*moved, dict(kind="scale", low=0.6, high=1.0))),
                   source_test=stream(source, per_class="[75%:]", split_seed=0), target_test=stream(target))
    told = Setting(backbone, dict(source=str(WEIGHTS / file)), name="objects", stream="source", target="target",
                   strong="strong", domains=(source, target), evaluate=("target_test",), classes=7, steps=args.steps,
                   lr=2e-3, backbone_lr=0.1, stage=dict(schedule=dict(kind="inverse_decay")))
    return experiment(f"pacs-{args.pair}", told, recipes(args.recipes, repr(arg)), streams, args.seeds,
                      pretrained=dict(backbone=dict(source=str(WEIGHTS / file))))
