"""What the eight cells of the transfer matrix share: two domains, two tasks, one small network, and arms to compare.

Tasks: `digits`, the class of one digit, and `scenes`, the class of every pixel of a picture with several digits.
Domains: `plain`, on black, and `photo`, over photographs. With `:data=embedded` both tasks come in both domains and
need no download. With `:data=mnist` the digits are MNIST (plain), USPS (plain, of another origin) and MNIST-M (photo),
all brought to 20x20, with 100 digits per class for training (where a cell asks for no other number) and 100 per class
of the test split; the scenes stay the embedded ones, since these collections have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.core.errors import unknown

EMBEDDED = {"plain": "digits", "photo": "digits_photo"}
PUBLISHED = {"plain": "idx", "usps": "usps", "photo": "mnistm"}
HEADS = {"digits": dict(kind="linear"),
         "scenes": dict(kind="segmentation", taps=("stage2", "stage3", "stage4"), width=24)}
TASKS = {"digits": dict(kind="classification", head="digits"), "scenes": dict(kind="segmentation", head="scenes")}
METRICS = {"digits": "accuracy", "scenes": "mean_iou"}

# The padding of a plain digit is as black as its background, so that moving it leaves no trace.
MOVED = (dict(kind="crop", padding=4), dict(kind="scale", low=0.7, high=1.0))

# Two ways to go on from a trained backbone: let it follow at a fifth of the pace, or leave it as it is.
GENTLE = dict(partition=(("backbone/.*", "backbone"), (".*", "head")),
              groups=dict(backbone=dict(lr_multiplier=0.2), head={}))
FROZEN = dict(partition=(("backbone/.*", "frozen"), (".*", "head")), groups=dict(head={}))


def arguments(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """The arguments of a cell: `data`, `seeds` (how many) and those that the cell adds.

    Raises:
      UserError: for an unknown argument or value of `data`.
    """
    args = parse_arg(arg, data="embedded", seeds=3, **defaults)
    if args.data not in ("embedded", "mnist"):
        raise unknown("data", args.data, ("embedded", "mnist"), repr(arg))
    return args


def digits(args: Mapping[str, Any], domain: str, **selection: Any) -> dict:
    """A training stream of digits; `selection` says which of them: `labels_per_class`, `per_class`, `labelled`."""
    if args["data"] == "mnist" and not {"labels_per_class", "per_class"} & set(selection):
        selection["per_class"] = "[:100]"
    return _stream(args, domain, split="train", augment=() if domain == "photo" else MOVED, **selection)


def digits_test(args: Mapping[str, Any], domain: str) -> dict:
    """The test digits of a domain: the same for all seeds."""
    few = dict(per_class="[:100]", split_seed=0) if args["data"] == "mnist" else {}
    return _stream(args, domain, split="test", **few)


def _stream(args: Mapping[str, Any], domain: str, **more: Any) -> dict:
    source = dict(kind="tfds", name=EMBEDDED[domain]) if args["data"] == "embedded" else dict(kind=PUBLISHED[domain])
    return dict(data=source, domain=domain, batch_size=32, **shape(args), **more)


def shape(args: Mapping[str, Any]) -> dict:
    """How a stream of digits brings its images to the network: black is 0."""
    return dict(mean=0.0) if args["data"] == "embedded" else dict(mean=0.0, image_size=(20, 20), channels=3)


def scenes(domain: str, split: str) -> dict:
    """A stream of scenes: 40x40, 2 to 5 digits of 12 to 16 pixels."""
    return dict(data=dict(kind="tfds", name="digit_scenes", config=domain), split=split, domain=domain, batch_size=8,
                mean=0.0)


def term(task: str, stream: str) -> dict:
    """The supervised loss of a task on a stream."""
    return dict(kind="task", task=task, stream=stream)


def stage(terms: dict, evaluate: dict, steps: int, init: str = "fresh", lr: float = 5e-3, **more: Any) -> dict:
    """A stage of `steps` updates by Adam, its learning rate going down along a cosine."""
    return dict(init=init, steps=steps, lr=lr, schedule=dict(kind="cosine"), evaluate=evaluate,
                objective=dict(terms=terms, combine=dict(kind=more.pop("combine", "fixed"))), **more)


def arm(method: str, *arguments: Any, **more: Any) -> dict:
    """A stage (its other arguments) that the report shows as a row of this name."""
    return dict(title=method, tags=dict(method=method), **stage(*arguments, **more))


def experiment(name: str, args: Mapping[str, Any], tasks: tuple[str, ...], streams: dict, stages: dict,
               shown: tuple[str, ...], heads: Mapping[str, dict] | None = None,
               norm: str = "batch") -> ml_collections.ConfigDict:
    """The cell: stages over one network with a head for every task (and further `heads`).

    The report compares the arms on the streams `shown`, by the metric of the first task.
    """
    backbone = dict(kind="small_cnn", widths=(16, 32, 64, 64), norm=norm)
    return ml_collections.ConfigDict(dict(
        name=name, seeds=tuple(range(args["seeds"])),
        model=dict(backbones=dict(backbone=backbone), heads={**{task: HEADS[task] for task in tasks}, **(heads or {})}),
        tasks={task: TASKS[task] for task in tasks}, streams=streams, stages=stages,
        report=dict(metric=METRICS[tasks[0]], streams=shown), checkpoint_every=0,
    ))


def sequence(name: str, args: Mapping[str, Any], target_domain: str,
             ways: Mapping[str, tuple[str, dict]]) -> ml_collections.ConfigDict:
    """Learn to name plain digits, then to segment scenes of `target_domain` from `args.scenes` of them.

    `ways` to go on from the digits: stage -> (row of the report, entries of the stage).
    """
    streams = dict(
        source=digits(args, "plain"),
        source_test=digits_test(args, "plain"),
        target=scenes(target_domain, f"train[:{args['scenes']}]"),
        target_test=scenes(target_domain, "test"),
    )
    segment = dict(scenes=term("scenes", "target")), dict(target_test="scenes"), args["steps"]
    stages = dict(
        pretrain=stage(dict(digits=term("digits", "source")), dict(source_test="digits"), args["pretrain_steps"]),
        scratch=arm("from scratch", *segment),
        **{way: arm(method, *segment, "pretrain", **entries) for way, (method, entries) in ways.items()},
    )
    return experiment(name, args, ("scenes", "digits"), streams, stages, ("target_test",))


def side_by_side(args: Mapping[str, Any], scene_domain: str) -> tuple[dict, dict]:
    """Streams of plain digits and of scenes, and the two stages that learn each of them alone."""
    streams = dict(
        digits=digits(args, "plain", labels_per_class=args["labels"]),
        scenes=scenes(scene_domain, f"train[:{args['scenes']}]"),
        digits_test=digits_test(args, "plain"),
        scenes_test=scenes(scene_domain, "test"),
    )
    stages = {f"{task}_alone": arm("trained alone", {task: term(task, task)}, {f"{task}_test": task}, args["steps"])
              for task in ("digits", "scenes")}
    return streams, stages


def together(method: str, args: Mapping[str, Any], **more: Any) -> dict:
    """The stage that learns the two streams of `side_by_side` at once."""
    return arm(method, dict(digits=term("digits", "digits"), scenes=term("scenes", "scenes")),
               dict(digits_test="digits", scenes_test="scenes"), args["steps"], **more)
