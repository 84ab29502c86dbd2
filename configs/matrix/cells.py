"""What the eight cells of the transfer matrix share: two domains, two tasks, one small network, and arms to compare.

Tasks: `digits`, the class of one digit, and `scenes`, the class of every pixel of a picture with several digits.
Domains: `plain`, on an even background, and `photo`, over photographs. With `:data=embedded` both tasks come in both
domains and need no download. With `:data=mnist` the digits are MNIST (plain), USPS (plain, of another origin) and
MNIST-M (photo), all brought to 20x20, 100 train and 100 test digits per class unless the cell says otherwise; the scenes
stay the embedded ones, since MNIST has none.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.core.errors import unknown

EMBEDDED = {"plain": "digits", "photo": "digits_photo"}
PUBLISHED = {"plain": "idx", "usps": "usps", "photo": "mnistm"}
HEADS = {"digits": dict(kind="linear"), "scenes": dict(kind="segmentation", taps=("stage2", "stage3", "stage4"))}
TASKS = {"digits": dict(kind="classification", head="digits"), "scenes": dict(kind="segmentation", head="scenes")}
METRICS = {"digits": "accuracy", "scenes": "mean_iou"}


def arguments(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """The arguments of a cell: `data`, `seeds` (how many) and those that the cell adds.

    Raises:
      UserError: for an unknown argument or value of `data`.
    """
    args = parse_arg(arg, data="embedded", seeds=3, **defaults)
    if args.data not in ("embedded", "mnist"):
        raise unknown("data", args.data, ("embedded", "mnist"), repr(arg))
    return args


def digits(args: ml_collections.ConfigDict, domain: str, *, split: str = "train", **more: Any) -> dict:
    """A stream of digits in batches of 32; `more` holds further entries of the stream, such as `labels_per_class`."""
    if args.data == "embedded":
        data, size = dict(kind="tfds", name=EMBEDDED[domain]), {}
    else:
        data = dict(kind=PUBLISHED[domain])
        size = dict(image_size=(20, 20), channels=3)
        if "labels_per_class" not in more and "per_class" not in more:
            size |= dict(per_class="[:100]", split_seed=0)
    return dict(data=data, split=split, domain=domain, batch_size=32, mean=0.0, **size, **more)


def scenes(domain: str, *, split: str = "train", **more: Any) -> dict:
    """A stream of scenes (40x40, 2 to 5 digits), in batches of 16."""
    data = dict(kind="tfds", name="digit_scenes", config=domain)
    return dict(data=data, split=split, domain=domain, batch_size=16, mean=0.0, **more)


def learn(**streams: str) -> dict:
    """The terms that teach each task from one stream: `learn(digits="source")`."""
    return {task: dict(kind="task", task=task, stream=stream) for task, stream in streams.items()}


def arm(method: str, terms: dict, evaluate: dict, steps: int, lr: float, init: str = "fresh", **more: Any) -> dict:
    """A stage that is a row of the report: all arms of a cell share the steps, the learning rate and its schedule."""
    objective = dict(terms=terms, **({"combine": dict(kind=more.pop("combine"))} if "combine" in more else {}))
    return dict(title=method, tags=dict(method=method), init=init, steps=steps, lr=lr, schedule=dict(kind="cosine"),
                objective=objective, evaluate=evaluate, **more)


def experiment(name: str, args: ml_collections.ConfigDict, tasks: tuple[str, ...], streams: dict, stages: dict,
               shown: tuple[str, ...], heads: dict | None = None) -> ml_collections.ConfigDict:
    """The cell: stages over one network with a head for every task; the report compares the scores on `shown`.

    The first task's metric is the one of the report.
    """
    backbone = dict(kind="small_cnn", widths=(16, 32, 64, 64))
    return ml_collections.ConfigDict(dict(
        name=name, seeds=tuple(range(args.seeds)),
        model=dict(backbones=dict(backbone=backbone), heads={**{task: HEADS[task] for task in tasks}, **(heads or {})}),
        tasks={task: TASKS[task] for task in tasks}, streams=streams, stages=stages,
        report=dict(metric=METRICS[tasks[0]], streams=shown), checkpoint_every=0,
    ))
