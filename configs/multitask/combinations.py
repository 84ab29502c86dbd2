"""Every way to combine losses or gradients on one benchmark: naming digits and segmenting scenes of digits at once.

    python -m transfer_jax.train --config configs/multitask/combinations.py --workdir DIR
    python -m transfer_jax.train --config 'configs/multitask/combinations.py:ways=fixed/MGDA,steps=800' --workdir DIR
    PYTHONPATH=. python configs/multitask/write_page.py FOLDER_OF_RUNS

Each way can be a run of its own, which other runs cannot break; what has ended is skipped when the command is given
again, and the report is one:

    python -m transfer_jax.sweep --config configs/multitask/combinations.py --workdir DIR

One small network, 50 labelled digits a class and 50 labelled scenes, 200 updates by Adam for every way, three seeds
together; docs/multitask.md shows the scores of all ways. Measured on 2 CPU cores that about eight other processes kept
busy, in two runs side by side that shared the ways (one with `alone=False`; the other was broken off when the two had
all): 31 to 279 s a way. On test data, mean and half width of the 95 % interval over 3 seeds: each task alone, digits
0.870 ± 0.063 and scenes (mean IoU) 0.187 ± 0.027; the plain sum 0.827 ± 0.091 and 0.245 ± 0.079; Nash-MTL 0.816 ± 0.117
and 0.273 ± 0.059, with the largest gain; MGDA 0.528 ± 0.208 and 0.208 ± 0.042: it follows the short gradients of the
scenes, and is the only way that loses with certainty. With so few updates and seeds most ways do not differ by more
than their intervals: this says what they favour, not which is best.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.core.errors import unknown

ALONE = "trained alone"
DEFAULTS = dict(ways="all", alone=True, labels=50, scenes=50, steps=200, seeds=3)
# Row of the report -> (kind of combination, its arguments, entries of the objective)
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fixed": ("fixed", {}, {}),
    "uncertainty": ("uncertainty", {}, {}),
    "RLW": ("random_weights", {}, {}),
    "GLS": ("geometric_mean", {}, {}),
    "STCH": ("smooth_tchebycheff", {}, {}),
    "IMTL-L": ("impartial_losses", {}, {}),
    "DWA": ("dynamic_average", {"window": 20}, {}),
    "FAMO": ("famo", {}, {}),
    "GradNorm": ("grad_norm", {}, {}),
    "Auto-Lambda": ("auto_lambda", {"initial": 1.0, "reach": 0.1, "lr": 0.02}, {}),
    "PCGrad": ("pcgrad", {}, {}),
    "GradVac": ("gradvac", {}, {}),
    "MGDA": ("mgda", {}, {}),
    "MGDA of all parameters": ("mgda", {}, {"gradients_of": "parameters"}),
    "CAGrad": ("cagrad", {}, {}),
    "UPGrad": ("upgrad", {}, {}),
    "DualProj": ("dual_proj", {}, {}),
    "Nash-MTL": ("nash_mtl", {}, {}),
    "FairGrad": ("fairgrad", {}, {}),
    "IMTL-G": ("imtl_g", {}, {}),
    "ConFIG": ("config", {}, {}),
    "Aligned-MTL": ("aligned_mtl", {}, {}),
    "GradDrop": ("grad_drop", {}, {}),
}
HEADS = dict(digits=dict(kind="linear"),
             scenes=dict(kind="segmentation", taps=("stage2", "stage3", "stage4"), width=24))
METRICS = dict(digits_test="accuracy", scenes_test="mean_iou")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`ways`: names of `WAYS` joined by '/', all or none; `alone`: whether each task is also trained alone; `labels`:
    labelled digits per class; `scenes`: labelled scenes; `steps`: updates of each arm; `seeds`: how many."""
    args = parse_arg(arg, **DEFAULTS)
    chosen = ways(args.ways, arg)
    stages = {f"{task}_alone": arm(ALONE, args, (task,), dict(kind="fixed")) for task in HEADS if args.alone}
    for way in chosen:
        kind, arguments, entries = WAYS[way]
        name = "".join(letter if letter.isalnum() else "_" for letter in way.lower())
        stages[name] = arm(way, args, tuple(HEADS), dict(kind=kind, **arguments), **entries)
    backbone = dict(kind="small_cnn", widths=(16, 32, 64, 64), norm="batch")
    return ml_collections.ConfigDict(dict(
        name="combinations", seeds=tuple(range(args.seeds)), log_every=20, checkpoint_every=0,
        model=dict(backbones=dict(backbone=backbone), heads=HEADS), streams=streams(args), stages=stages,
        tasks=dict(digits=dict(kind="classification", head="digits"), scenes=dict(kind="segmentation", head="scenes")),
        report=dict(metric="mean_iou", streams=("scenes_test",), reference=ALONE, tasks=METRICS)))


def get_sweep(arg: str | None = None) -> Iterator[dict[str, str]]:
    """The tasks alone, and every way, in a run of its own."""
    args = parse_arg(arg, **DEFAULTS)
    if args.alone:
        yield {"arg": "ways=none"}
    yield from ({"arg": f"ways={way},alone=False"} for way in ways(args.ways, arg))


def ways(asked: str, arg: str | None) -> list[str]:
    """Names of `WAYS`."""
    chosen = {"all": list(WAYS), "none": []}.get(asked, asked.split("/"))
    for way in chosen:
        if way not in WAYS:
            raise unknown("way", way, WAYS, repr(arg))
    return chosen


def streams(args: ml_collections.ConfigDict) -> dict:
    """Plain digits of 20x20 and plain scenes of 40x40, for training and for testing."""
    moved = (dict(kind="crop", padding=4), dict(kind="scale", low=0.7, high=1.0))
    digits = dict(data=dict(kind="tfds", name="digits"), batch_size=32, mean=0.0)
    scenes = dict(data=dict(kind="tfds", name="digit_scenes", config="plain"), batch_size=8, mean=0.0)
    return dict(digits=dict(**digits, split="train", augment=moved, labels_per_class=args.labels),
                scenes=dict(**scenes, split=f"train[:{args.scenes}]"),
                digits_test=dict(**digits, split="test"), scenes_test=dict(**scenes, split="test"))


def arm(row: str, args: ml_collections.ConfigDict, tasks: tuple[str, ...], combine: dict, **entries: Any) -> dict:
    """A stage that learns the tasks from fresh parameters by Adam, its learning rate going down along a cosine."""
    terms = {task: dict(kind="task", task=task, stream=task) for task in tasks}
    return dict(title=row, tags=dict(method=row), init="fresh", steps=args.steps, lr=5e-3, schedule=dict(kind="cosine"),
                evaluate={f"{task}_test": task for task in tasks},
                objective=dict(terms=terms, combine=combine, **entries))
