"""Few parameters: accuracy on half B (20 labels per class), what is forgotten of half A, parameters that train, time.

    python -m transfer_jax.train --config configs/ablations/few_parameters.py --workdir runs/few_parameters

Measured on two CPU cores that were busy with other work, 13 min; accuracy over 3 seeds. The network of half A answers
0.668 ± 0.031 of A's test images right before. On B all methods lie within each other's intervals (0.58 to 0.61);
fine-tuning (75 thousand parameters) forgets most of A (0.528 ± 0.058), and so do LoRA and DoRA in all convolutions
(0.524 and 0.523); norms (805 parameters, 0.647 ± 0.033) and IA3 (549, 0.649 ± 0.047) keep it. A linear probe changes
nothing of A. With so small a network low rank saves nine tenths of the parameters that train, and little time.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_collections
from halves import arguments, cifar, experiment, recipe, setting

CONV = "targets=backbone/stage./block0/conv.)"
METHODS = {"fine-tuning": "finetune", "linear probe": "linear_probe", "biases": "bitfit", "norms": "norm_tuning",
           "LoRA, rank 4": f"lora(rank=4;alpha=4;{CONV}", "DoRA, rank 4": f"dora(rank=4;alpha=4;{CONV}",
           "IA3": f"ia3({CONV}", "SSF": "ssf"}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: of B per class."""
    args = arguments(arg, labels=20)
    streams = dict(b=cifar("b", labels_per_class=args.labels), b_test=cifar("b", "test"))
    stages: dict = {}
    for method, text in METHODS.items():
        told = setting(args, "b", "b", ("b_test",), lr=5e-3, backbone_lr=0.1)
        stages.update(recipe(text, told, text.partition("(")[0], dict(method=method), dict(a_test="a"))[0])
    return experiment(args, "few-parameters", "Few parameters for half B; a_test: what is left of half A", streams,
                      stages, report=dict(streams=("b_test", "a_test"), reference="fine-tuning"))


def get_sweep(arg: str | None = None) -> Iterator[dict]:
    """Fewer and more labels."""
    yield from ({"streams.b.labels_per_class": labels} for labels in (5, 100))
