"""DOC"""

from __future__ import annotations

import ml_collections
from cells import arguments, experiment, side_by_side, together


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: labelled digits per class; `scenes`: labelled scenes; `steps`: updates of each arm."""
    args = arguments(arg, labels=50, scenes=50, steps=400)
    streams, stages = side_by_side(args, "plain")
    stages |= dict(fixed=together("together, weights 1 and 1", args),
                   learned=together("together, learned weights", args, combine="uncertainty"))
    return experiment("multitask", args, ("scenes", "digits"), streams, stages, ("scenes_test",))
