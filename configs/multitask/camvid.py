"""Classes and borders of road scenes, each alone and both on one trunk of a published network.

    python -m transfer_jax.train --config configs/multitask/camvid.py --workdir runs/camvid
    PYTHONPATH=. python configs/multitask/write_page.py runs

CamVid at 96 x 128 pixels, 367 images to learn from and 233 to score, eleven classes; borders are those of the masks.
MobileNet v1 (a quarter of the width, ImageNet), whose stem and first two stages keep still and run once; BatchNorm
keeps its statistics. 150 steps of 16 images by Adam for every arm. Measured on two CPU cores that other jobs shared (a
load of 6 to 11): 31 min for all arms and seeds.

Mean and half width of the 95 % interval over 3 seeds: mean IoU and F1 of the borders of classes; of borders as a task,
F1 at the best threshold (within two pixels) and average precision (pixel by pixel). Δm is of mean IoU and that F1.

                                  mean IoU       border F1      borders: F1    AP             Δm %
    pyramid, alone                0.304 ± 0.018  0.304 ± 0.025  0.771 ± 0.044  0.384 ± 0.065  reference
    pyramid, together             0.304 ± 0.017  0.308 ± 0.035  0.771 ± 0.024  0.378 ± 0.038   -0.1 ± 1.7
    FCN, alone                    0.276 ± 0.016  0.260 ± 0.012  0.692 ± 0.011  0.305 ± 0.025   -9.8 ± 5.3
    FCN, together                 0.271 ± 0.014  0.260 ± 0.003  0.702 ± 0.011  0.306 ± 0.018   -9.9 ± 5.6
    scores of the frozen network  0.244 ± 0.008  0.219 ± 0.018  0.679 ± 0.015  0.291 ± 0.022  -15.8 ± 4.4

Sharing the trunk costs nothing and gains nothing here: one network does the work of two. The head matters more than
the company: the pyramid leads the linear scores of an FCN by a tenth, and these the frozen network by about as much in
mean IoU. So few steps at so small a size find what is large: IoU of sky 0.83, road 0.77, building 0.60, car 0.39 and
tree 0.37 (pyramid, alone), yet 0.00 of poles, signs, pedestrians and bicyclists; these four are a third of the mean.
Answers of borders at probability 0.5 are bands, as the balanced loss asks for. No rate or length was searched.

An arm of its own weighs the classes by how rare they are (`RARE`; `camvid.py:arms=weighted`, 8 min 13 s at a load of 12
to 20): mean IoU 0.320 ± 0.029, border F1 0.297 ± 0.039. All of the four small classes are found, with an IoU of 0.03 to
0.07 (0.13 to 0.62 of their pixels), and the fence 0.12, at the cost of the large ones (building 0.37, pixel accuracy
0.640 ± 0.032): no gain in the mean beyond the intervals.
"""

from __future__ import annotations

import os
from pathlib import Path

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.core.errors import unknown

WEIGHTS = Path(os.environ.get("TRANSFER_JAX_DATA", "../shared/data")) / "weights" / "mobilenetv1_025_imagenet"
FILE = WEIGHTS / "mobilenetV1X0.25_pretrain.tar"
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels=3)
TAPS = ("stage2", "stage3", "stage4", "stage5")  # strides 4, 8, 16, 32
HEADS = {"pyramid": dict(kind="feature_pyramid", taps=TAPS, width=32, branch=32), "FCN": dict(kind="fcn", taps=TAPS)}
TASKS = {"classes": dict(kind="segmentation", loss=dict(kind="segmentation_cross_entropy", ignore_label=255),
                         metrics=("mean_iou", "pixel_accuracy", "per_class_accuracy", "boundary_f1")),
         "borders": dict(kind="boundary_detection")}
# Median over classes of their share of pixels, in images that show them, by the share of each (Eigen & Fergus 2015) in
# the images to learn from.
RARE = (0.28, 0.20, 4.80, 0.15, 1.00, 0.42, 3.84, 1.98, 0.79, 6.37, 8.86)
EARLY = (r"backbone/(stem|stage[12])/.*", "frozen")  # runs once: its maps of all images are kept


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`steps` of each arm; `seeds`: how many; `lr` of the heads, a tenth of it for the trunk; `split` that scores:
    'val' is the one to search on; `arms`: names of stages joined by '/', or 'all'."""
    args = parse_arg(arg, steps=150, seeds=3, lr=3e-3, split="test", arms="all")

    def stream(split: str) -> dict:
        return dict(data=dict(kind="camvid"), split=split, batch_size=16, image_size=(96, 128), **IMAGENET)

    def arm(method: str, head: str, tasks: tuple[str, ...], trunk: tuple[tuple[str, str], ...], **loss: object) -> dict:
        used = {task: f"{task}_{head}" for task in tasks}
        moving = any(group == "trunk" for _, group in trunk)
        groups = dict(head=dict(lr=args.lr), **(dict(trunk=dict(lr=args.lr / 10)) if moving else {}))
        return dict(
            title=f"{method}: {' and '.join(tasks)}", tags=dict(method=method), init="fresh", steps=args.steps,
            schedule=dict(kind="cosine"), batch_norm="stored", groups=groups,
            partition=(*trunk, ("heads/.*", "head")),
            objective=dict(terms={task: dict(loss, kind="task", task=name, stream="train")
                                  for task, name in used.items()}),
            evaluate={f"{task}_{args.split}": name for task, name in used.items()})

    stages = dict(linear=arm("scores of the frozen network", "FCN", tuple(TASKS), (("backbone/.*", "frozen"),)))
    moved = (EARLY, (r"backbone/.*", "trunk"))
    for head in HEADS:
        stages |= {f"{head}_{task}".lower(): arm(f"{head}, alone", head, (task,), moved) for task in TASKS}
        stages[f"{head}_together".lower()] = arm(f"{head}, together", head, tuple(TASKS), moved)
    stages["weighted"] = arm("pyramid, alone, weighted classes", "pyramid", ("classes",), moved, class_weights=RARE)
    if args.arms != "all":
        for name in args.arms.split("/"):
            if name not in stages:
                raise unknown("arm", name, stages, repr(arg))
        stages = {name: stages[name] for name in args.arms.split("/")}
    return ml_collections.ConfigDict(dict(
        name="camvid", seeds=tuple(range(args.seeds)),
        model=dict(backbones=dict(backbone=dict(kind="mobilenet_v1_retinaface")),
                   heads={f"{task}_{kind}": dict(head) for task in TASKS for kind, head in HEADS.items()}),
        pretrained=dict(backbone=dict(source=str(FILE))),
        tasks={f"{task}_{kind}": dict(TASKS[task], head=f"{task}_{kind}", class_names_from="train")
               for task in TASKS for kind in HEADS},
        streams=dict(train=stream("train"), **{f"{task}_{args.split}": stream(args.split) for task in TASKS}),
        stages=stages, checkpoint_every=0, eval_batch_size=32,
        report=dict(metric="mean_iou", reference="pyramid, alone",
                    tasks={f"classes_{args.split}": "mean_iou", f"borders_{args.split}": "boundary_ods_f1"}),
    ))
