"""DOC"""

from __future__ import annotations

import ml_collections
from cells import FROZEN, GENTLE, arguments, sequence


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`scenes`: how many labelled scenes; `steps`: updates of each arm."""
    args = arguments(arg, scenes=50, steps=400, pretrain_steps=300)
    return sequence("task_adaptation", args, "plain", dict(
        finetune=("fine-tuning, backbone at a fifth of the rate", GENTLE),
        frozen=("new head on the frozen backbone", FROZEN),
    ))
