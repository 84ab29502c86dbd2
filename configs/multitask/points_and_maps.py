"""Five tasks of other kinds on one trunk: which digits, where, how far, how steep, and the image itself.

    python -m transfer_jax.train --config configs/multitask/points_and_maps.py --workdir DIR

Scenes of two to five digits on 40x40 pixels (400 to learn from, 100 to test). Measured on 2 CPU cores shared with other
work: 12 min 54 s (8 min 23 s of processor time), all seeds and arms, report included. Mean ± half width of the 95 %
interval over 3 seeds; Δm: mean over the tasks of the change in percent against each alone, seed by seed:

                               mean AP        PCK@0.1        abs. rel.      mean angle     PSNR (dB)       Δm %
                                                             error          (degrees)
    trained alone              0.413 ± 0.019  0.858 ± 0.017  0.075 ± 0.018  4.292 ± 1.513  16.105 ± 0.968  reference
    together, equal weights    0.405 ± 0.034  0.831 ± 0.068  0.080 ± 0.007  5.950 ± 1.224  15.284 ± 1.022  -11.3 ± 2.0
    together, learned weights  0.401 ± 0.036  0.840 ± 0.056  0.079 ± 0.009  5.458 ± 1.681  15.462 ± 1.277  -8.4 ± 3.3

One trunk for five tasks costs, most of all the normals, which are read off the finest maps; it has 117 thousand
parameters where the five networks have five trunks. Mean AP is above the 0.30 of chance, and still low: 250 steps are
few for it, and images are drawn blurred.
"""

from __future__ import annotations

import ml_collections

from transfer_jax.core.config import parse_arg

TASKS = {  # task -> kind, head, metric
    "tags": ("multi_label", dict(kind="linear"), "macro_average_precision"),
    "points": ("keypoints", dict(kind="segmentation", taps=("stage2", "stage3", "stage4"), width=32), "pck_10"),
    "far": ("depth", dict(kind="segmentation", taps=("stage2", "stage3", "stage4"), width=24), "abs_rel_error"),
    "up": ("normals", dict(kind="segmentation", taps=("stage1", "stage2"), width=16), "mean_angle_error"),
    "image": ("auto_encoding", dict(kind="decoder", tap="stage4", widths=(32, 24, 16)), "psnr"),
}
MORE = {"tags": dict(loss=dict(kind="multi_label_cross_entropy", positive_weights=2.5))}  # 30 % are positive
LABELS = ("labels", "keypoints", "depth", "normals")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`scenes`: labelled scenes; `steps`: updates of each arm; `seeds`: how many."""
    args = parse_arg(arg, scenes=400, steps=250, seeds=3)
    stages = {f"{task}_alone": _arm("trained alone", (task,), args.steps) for task in TASKS}
    stages["together"] = _arm("together, equal weights", tuple(TASKS), args.steps)
    stages["uncertainty"] = _arm("together, learned weights", tuple(TASKS), args.steps, "uncertainty")
    return ml_collections.ConfigDict(dict(
        name="points_and_maps", seeds=tuple(range(args.seeds)),
        model=dict(backbones=dict(backbone=dict(kind="small_cnn", widths=(16, 32, 64, 64), norm="group")),
                   heads={task: head for task, (_, head, _) in TASKS.items()}),
        tasks={task: dict(kind=kind, head=task, **MORE.get(task, {})) for task, (kind, _, _) in TASKS.items()},
        streams=dict(train=_scenes(f"train[:{args.scenes}]", augment=(dict(kind="crop", padding=4),)),
                     test=_scenes("test")),
        stages=stages, checkpoint_every=0,
        report=dict(metric="macro_average_precision", reference="trained alone",
                    tasks={f"test/{task}": metric for task, (_, _, metric) in TASKS.items()}),
    ))


def _scenes(split: str, **more) -> dict:
    return dict(data=dict(kind="tfds", name="digit_scenes", config="plain"), split=split, batch_size=16, mean=0.0,
                targets=LABELS, **more)


def _arm(method: str, tasks: tuple[str, ...], steps: int, combine: str = "fixed") -> dict:
    return dict(init="fresh", title=f"{tasks[0]} {method}" if len(tasks) == 1 else method, tags=dict(method=method),
                steps=steps, lr=5e-3, schedule=dict(kind="cosine"), evaluate=dict(test=tasks),
                objective=dict(terms={task: dict(kind="task", task=task, stream="train") for task in tasks},
                               combine=dict(kind=combine)))
