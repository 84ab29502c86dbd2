"""DOC"""

from __future__ import annotations

import ml_collections
from cells import arguments, experiment, side_by_side, together


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: labelled digits per class; `scenes`: labelled scenes; `steps`: updates of each arm."""
    args = arguments(arg, labels=50, scenes=200, steps=600)
    streams, stages = side_by_side(args, "photo")
    stages |= dict(both=together("both in parallel", args))
    # BatchNorm would keep one set of statistics for pictures on black and pictures over photographs.
    return experiment("parallel", args, ("scenes", "digits"), streams, stages, ("scenes_test",), norm="group")
