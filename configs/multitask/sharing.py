"""Ways to share one network among three tasks: naming digits, segmenting scenes of digits, finding the borders in them.

    python -m transfer_jax.train --config configs/multitask/sharing.py --workdir RUNS/sharing
    python -m transfer_jax.train --config configs/multitask/sharing.py:norm=batch --workdir RUNS/sharing_batch
    PYTHONPATH=. python configs/multitask/write_page.py RUNS

One small network, 50 labelled digits a class and 50 labelled scenes, 120 updates by Adam for every arm, three seeds
together; batches of digits and of scenes move BatchNorm statistics of their own. Measured on 2 CPU cores that ten to
twenty other processes kept busy: 33 min of training, compilation included, for all arms, so that their seconds hardly
compare. On test data, mean and half width of the 95 % interval over 3 seeds, Δm against single networks: cross-stitch
+10.8 ± 8.2 and task attention +18.3 ± 25.2, which have 1.0 and 1.8 times the parameters of the three single networks
together; groups by affinity -0.5 ± 3.4 with 0.7 times as many; hard sharing -6.0 ± 2.9, adapters for each task -8.9 ±
4.5, multi-gate experts -15.7 ± 15.3 and progressive experts -21.2 ± 10.5.

With one set of statistics (`norm=batch`) hard sharing has -8.2 ± 5.1, and the adapters, whose every task moves it once
more in a step, -28.6 ± 17.1: most of what they lost was due to that, little of what hard sharing loses is. Group norm
in its place (`norm=group`) learns no digits in so few updates: single networks 0.161 ± 0.179, 0.601 ± 0.069 by
BatchNorm.

In every seed the affinities ask for two networks, one for segments and borders and one for the digits, the default of
`groups`: a step on the digits raises the losses of the other two. Yet it is the digits whose test score falls when all
share (0.601 ± 0.069 alone, 0.415 ± 0.117 by hard sharing), though steps on the others hardly move their training loss.
Nothing was searched, and 120 updates leave all arms far from trained out.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.core.errors import unknown

ALONE = "single networks"
STREAMS = dict(digits="digits", segment="scenes", borders="scenes")  # task -> what it reads
KINDS = dict(digits="classification", segment="segmentation", borders="boundary_detection")
METRICS = dict(digits_test="accuracy", segment_test="mean_iou", borders_test="boundary_average_precision")
TASKS = tuple(STREAMS)
MAPS = ("stage1", "stage2", "stage3")
# Batch norm with statistics of digits and of scenes apart, or with one set of statistics for both; or group norm.
NORMS = {"separate": ("batch", "separate"), "batch": ("batch", "follow"), "group": ("group", "follow")}
BEHIND = "backbone/stage3"  # what experts read
# Part of the model that tells the tasks apart -> what a stream gives it.
PARTS: dict[str, Any] = {"stitched": "image", "gated": BEHIND, "layered": BEHIND,
                         "attended": tuple(f"backbone/{name}" for name in MAPS)}
# Row of the report -> the part that its heads read; "" for the trunk itself.
ARMS = {"hard sharing": "", "cross-stitch": "stitched", "multi-gate experts": "gated",
        "progressive experts": "layered", "task attention": "attended", "adapters for each task": ""}
GROUPS = "groups by affinity"
ADAPTERS = dict(own=dict(kind="adapter", targets=("backbone/stage[23]_conv1",), width=16, placement="serial",
                         activation="relu", heads=TASKS))


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`arms`: names of `ARMS`, 'single networks' or 'groups by affinity' joined by '/', or all; `groups`: tasks that
    share a network joined by '+', networks by '/'; `norm`: one of `NORMS`; `labels`: labelled digits per class;
    `scenes`: labelled scenes; `steps`: updates of each arm; `seeds`: how many."""
    args = parse_arg(arg, arms="all", groups="segment+borders/digits", norm="separate", labels=50, scenes=50, steps=120,
                     seeds=3)
    if args.norm not in NORMS:
        raise unknown("norm", args.norm, NORMS, repr(arg))
    known = [ALONE, *ARMS, GROUPS]
    chosen = known if args.arms == "all" else args.arms.split("/")
    for arm in chosen:
        if arm not in known:
            raise unknown("arm", arm, known, repr(arg))
    groups = [tuple(group.split("+")) for group in args.groups.split("/")]
    for task in (task for group in groups for task in group):
        if task not in TASKS:
            raise unknown("task", task, TASKS, repr(arg))
    parts = ("", *(part for part in PARTS if part in {ARMS.get(arm) for arm in chosen}))
    stages = {}
    for arm in chosen:
        name = "".join(letter if letter.isalnum() else "_" for letter in arm)
        sets = {ALONE: [(task,) for task in TASKS], GROUPS: groups}.get(arm, [TASKS])
        stages |= {name if len(sets) == 1 else f"{name}_{'_'.join(tasks)}": stage(arm, args, tasks) for tasks in sets}
    heads = {head(task, part): head_spec(task, part) for task in TASKS for part in parts}
    return ml_collections.ConfigDict(dict(
        name="sharing", seeds=tuple(range(args.seeds)), log_every=20, checkpoint_every=0,
        model=dict(backbones=backbones(NORMS[args.norm][0], parts), heads=heads),
        tasks={head(task, part): dict(kind=KINDS[task], head=head(task, part)) for task in TASKS
               for part in parts},
        streams=streams(args, parts), stages=stages,
        report=dict(metric="mean_iou", streams=("segment_test",), reference=ALONE, tasks=METRICS)))


def backbones(norm: str, parts: tuple[str, ...]) -> dict:
    """The trunk, and the parts that tell the tasks apart."""
    trunk = dict(kind="small_cnn", widths=(16, 32, 64), norm=norm)
    known = dict(stitched=dict(kind="cross_stitch", column=trunk, tasks=TASKS, at=MAPS),
                 gated=dict(kind="multi_gate_experts", tasks=TASKS, experts=3, hidden=(64,)),
                 layered=dict(kind="progressive_experts", tasks=TASKS, own=1, shared=1, levels=2, hidden=(64,)),
                 attended=dict(kind="task_attention", tasks=TASKS, stages=3, norm=norm))
    return dict(backbone=trunk, **{part: known[part] for part in parts if part})


def head(task: str, part: str) -> str:
    return f"{task}_{part}" if part else task


def head_spec(task: str, part: str) -> dict:
    """On the last map, for tasks of pixels also on the map before it, both of the task where the part makes two."""
    last = {"": "stage3", "stitched": f"stitched/{task}_stage3", "attended": f"attended/{task}3"}.get(
        part, f"{part}/{task}")
    before = {"stitched": f"stitched/{task}_stage2", "attended": f"attended/{task}2"}.get(part, "stage2")
    if task == "digits":
        return dict(kind="linear", tap=last, pool="mean")
    return dict(kind="segmentation", taps=(before, last), width=24)


def inputs(*parts: str) -> dict:
    """What the trunk and these parts read; a network of columns has no trunk."""
    trunk = {} if parts == ("stitched",) else dict(backbone="image")
    return {**trunk, **{part: PARTS[part] for part in parts if part}}


def streams(args: ml_collections.ConfigDict, parts: tuple[str, ...]) -> dict:
    """Plain digits of 20x20 and plain scenes of 40x40: for training, for each part of the model; and for testing."""
    moved = (dict(kind="crop", padding=4), dict(kind="scale", low=0.7, high=1.0))
    digits = dict(data=dict(kind="tfds", name="digits"), domain="digits", batch_size=32, mean=0.0)
    scenes = dict(data=dict(kind="tfds", name="digit_scenes", config="plain"), domain="scenes", batch_size=8, mean=0.0)
    train = dict(digits=dict(**digits, split="train", augment=moved, labels_per_class=args.labels),
                 scenes=dict(**scenes, split=f"train[:{args.scenes}]"))
    test = dict(digits=dict(**digits, split="test"), scenes=dict(**scenes, split="test"))
    return {**{head(name, part): dict(**stream, inputs=inputs(part)) for name, stream in train.items()
               for part in parts},
            **{f"{task}_test": dict(**test[name], inputs=inputs(*parts)) for task, name in STREAMS.items()}}


def stage(arm: str, args: ml_collections.ConfigDict, tasks: tuple[str, ...]) -> dict:
    """A stage that learns the tasks from fresh parameters by Adam, its learning rate going down along a cosine."""
    part = ARMS.get(arm, "")
    terms = {task: dict(kind="task", task=head(task, part), stream=head(STREAMS[task], part)) for task in tasks}
    measured = dict(affinity=dict(every=5, rate=0.05)) if arm == "hard sharing" else {}
    of_two = len({STREAMS[task] for task in tasks}) > 1
    return dict(title=arm, tags=dict(method=arm), init="fresh", steps=args.steps, lr=5e-3,
                schedule=dict(kind="cosine"), batch_norm=NORMS[args.norm][1] if of_two else "follow",
                peft=ADAPTERS if arm == "adapters for each task" else {},
                evaluate={f"{task}_test": head(task, part) for task in tasks},
                objective=dict(terms=terms, **measured))
