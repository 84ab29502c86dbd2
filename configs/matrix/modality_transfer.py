"""DOC"""

from __future__ import annotations

import ml_collections
from cells import arguments, sequence


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`scenes`: how many labelled scenes; `steps`: updates of each arm."""
    args = arguments(arg, scenes=200, steps=600, pretrain_steps=300)
    return sequence("modality_transfer", args, "photo", dict(finetune=("fine-tuning", {})))
