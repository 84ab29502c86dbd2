"""Learning curves: from scratch, on frozen features and with fine-tuning, against the number of images of half B.

    python -m transfer_jax.train --config configs/ablations/learning_curves.py --workdir runs/learning_curves

Measured on two CPU cores, busy with other work, in 9 min with `:base=` (the network of half A taken from another
ablation); accuracy over 3 seeds. With few labels what half A taught wins: at 5 per class 0.532 ± 0.056 on frozen
features and 0.507 ± 0.031 fine-tuned against 0.399 ± 0.038 from scratch; at 20, 0.587 and 0.609 against 0.521. At 100
the lead is gone (0.598, 0.637, 0.646), at 400 training from scratch is as good or better (0.597, 0.635, 0.666): the
source is no larger than the target here, and fine-tuning moves the backbone at a quarter of the rate for 60 steps.
The claim that a pretrained network answers 69 % where training from scratch answers 10 % needs a large source.
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
