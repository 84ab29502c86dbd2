"""What the ablations share: CIFAR-10 in two halves of five classes, a small ResNet trained on half A, and recipes that
carry it to half B.

The images are the 8,068 + 1,017 lossless ones of the folder that `TRANSFER_JAX_DATA` names (default `../shared/data`).
Half A: airplane, automobile, bird, cat, deer; half B: dog, frog, horse, ship, truck. Both hold animals and vehicles, so
that B is like A. Unlike it are SVHN's house numbers and garments (Fashion-MNIST).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.recipes import Setting, expand, grafted

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DATA = Path(os.environ.get("TRANSFER_JAX_DATA", "../shared/data")) / "datasets"
CIFAR = dict(kind="arrays", path=str(DATA / "cifar10_lossless" / "cifar10_lossless.npz"), class_names=CLASSES,
             arrays=dict(train_image="x_train", train_label="y_train", test_image="x_test", test_label="y_test"))
NORMALIZED = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616), image_size=(32, 32), channels=3)
BACKBONE = dict(kind="cifar_resnet8")


def arguments(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """`seeds` (how many), `base_steps` (on half A), `steps` (of a recipe), what the ablation adds, and `base`: the
    folder of another ablation whose network of half A is taken, which saves training it again."""
    return parse_arg(arg, **{**dict(seeds=3, base_steps=500, steps=120, base=""), **defaults})


def cifar(half: str, split: str = "train", **selection: Any) -> dict:
    """A stream of half 'a' or 'b'."""
    classes = CLASSES[:5] if half == "a" else CLASSES[5:]
    size = 64 if half == "a" else 32
    return dict(data=CIFAR, split=split, classes=classes, batch_size=size, **NORMALIZED, **selection)


def experiment(args: Mapping[str, Any], name: str, title: str, streams: dict, stages: dict, *, report: dict,
               tasks: Mapping[str, str] | None = None, heads: Mapping[str, Any] | None = None,
               ) -> ml_collections.ConfigDict:
    """Base training on half A, then `stages`; `tasks`: task -> the stream whose classes its head has; `heads`: those
    that are not linear on the last features."""
    moved = (dict(kind="flip"), dict(kind="crop", padding=4))
    base = dict(title="half A", init="random", steps=args["base_steps"], lr=3e-3, schedule=dict(kind="cosine"),
                warmup_steps=20, objective=dict(terms=dict(a=dict(kind="task", task="a", stream="a"))),
                evaluate=dict(a_test="a"))
    names = {"a": "a", **(tasks or {"b": "b"})}
    if args["base"]:
        base = dict(title="half A", init=f"checkpoint:{args['base']}@base", evaluate=dict(a_test="a"),
                    new=tuple(f"heads/{name}/.*" for name in names if name != "a"))
    return ml_collections.ConfigDict(dict(
        name=name, seeds=tuple(range(args["seeds"])),
        model=dict(backbones=dict(backbone=BACKBONE),
                   heads={task: dict(kind="linear") for task in names} | dict(heads or {})),
        tasks={task: dict(kind="classification", head=task, class_names_from=stream)
               for task, stream in names.items()},
        streams=dict(a=cifar("a", augment=moved), a_test=cifar("a", "test"), **streams),
        stages=dict(base=base, **stages), report=dict(title=title, row="method", **report),
        log_every=50, checkpoint_every=0))


def setting(args: Mapping[str, Any], task: str, stream: str, evaluate: tuple[str, ...], **more: Any) -> Setting:
    """What recipes are told that go on from half A."""
    return Setting(**{**dict(backbone=BACKBONE, name=task, stream=stream, evaluate=evaluate, start="base",
                             steps=args["steps"], lr=2e-3, backbone_lr=0.25, probe_lr=2.0, source_head="a"), **more})


def recipe(text: str, told: Setting, prefix: str, tags: Mapping[str, Any], also: Mapping[str, str] | None = None,
           ) -> tuple[dict, dict]:
    """(stages, heads that differ) of a recipe: named `prefix`, with `tags` on its last stage, which also scores the
    streams of `also` with their tasks."""
    plan = expand(text, told)
    stages = grafted(plan["stages"], prefix)
    for stage in stages.values():
        stage["evaluate"] = {}
    last = list(stages)[-1]
    stages[last].update(title=f"{tags.get('method', prefix)}", tags=dict(tags),
                        evaluate={**dict.fromkeys(told.evaluate, told.name), **(also or {})})
    return stages, plan["model"]["heads"]
