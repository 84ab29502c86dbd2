"""Learning curves: from scratch, on frozen features and with fine-tuning, against the number of images of half B.

    python -m transfer_jax.train --config configs/ablations/learning_curves.py --workdir runs/learning_curves

MEASURED
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_collections
from halves import arguments, cifar, experiment, recipe, setting

LABELS = (1, 5, 20, 100, 400)
METHODS = {"from scratch": "scratch", "frozen features": "linear_probe", "fine-tuned": "lp_ft"}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """See the module's docstring for the arguments that all ablations share."""
    args = arguments(arg)
    streams, stages = dict(b_test=cifar("b", "test")), {}
    for labels in LABELS:
        streams[f"b_{labels}"] = cifar("b", labels_per_class=labels)
        for method, text in METHODS.items():
            told = setting(args, "b", f"b_{labels}", ("b_test",))
            found, _ = recipe(text, told, f"{text}_{labels}", dict(method=method, labels=labels))
            stages.update(found)
    return experiment(args, "learning-curves", "Accuracy on half B against its labels per class", streams, stages,
                      report=dict(streams=("b_test",), x="labels", reference="from scratch"), tasks=dict(b="b_400"))


def get_sweep(arg: str | None = None) -> Iterator[dict]:
    """Longer and shorter training of the recipes on the most labels."""
    yield from ({"stages.scratch_400.steps": steps} for steps in (240, 480))
