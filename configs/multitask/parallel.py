"""Parallel training: chest X-rays and natural images, two networks with nothing in common, in one process.

    python -m transfer_jax.train --config configs/multitask/parallel.py --workdir runs/parallel
    python -m transfer_jax.train --config configs/multitask/parallel.py:together=off --workdir runs/one_by_one

Measured on two CPU cores beside the test suite: 5 min 49 s together and 2 min 50 s one by one, at different loads, so
that these do not compare. Accuracy on test images, mean ± half width of the 95 % interval over 3 seeds: X-rays (LeNet,
200 steps; normal or pneumonia) 0.840 ± 0.027, photographs (ResNet-8, 150 steps; 10 classes) 0.326 ± 0.012, the same
both ways: all results, and every leaf of the last checkpoints, are equal to the bit.
"""

from __future__ import annotations

import os
from pathlib import Path

import ml_collections

from transfer_jax.core.config import parse_arg

DATA = Path(os.environ.get("TRANSFER_JAX_DATA", "../shared/data")) / "datasets"
XRAYS = dict(kind="arrays", path=str(DATA / "pneumoniamnist" / "pneumoniamnist.npz"),
             class_names=("normal", "pneumonia"),
             arrays=dict(train_image="train_images", train_label="train_labels", test_image="test_images",
                         test_label="test_labels"))
CIFAR = dict(kind="arrays", path=str(DATA / "cifar10_lossless" / "cifar10_lossless.npz"),
             class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
             arrays=dict(train_image="x_train", train_label="y_train", test_image="x_test", test_label="y_test"))
NETWORKS = dict(xrays=dict(kind="lenet"), photographs=dict(kind="cifar_resnet8"))


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`together`: on or off; `xray_steps`, `photograph_steps`: updates of each; `seeds`: how many."""
    args = parse_arg(arg, together="on", xray_steps=200, photograph_steps=150, seeds=3)
    shown = dict(xrays=dict(data=XRAYS, domain="xrays", image_size=(28, 28), channels=1, batch_size=64),
                 photographs=dict(data=CIFAR, domain="photographs", image_size=(32, 32), channels=3, batch_size=32))
    moved = dict(xrays=(), photographs=(dict(kind="flip"), dict(kind="crop", padding=4)))
    streams, stages = {}, {}
    for name, stream in shown.items():
        stream["inputs"] = {name: "image"}
        streams |= {name: dict(stream, augment=moved[name]), f"{name}_test": dict(stream, split="test")}
        stages[name] = dict(
            title=name, init="fresh", steps=args.xray_steps if name == "xrays" else args.photograph_steps, lr=2e-3,
            schedule=dict(kind="cosine"), evaluate={f"{name}_test": name},
            objective=dict(terms={name: dict(kind="task", task=name, stream=name)}))
    return ml_collections.ConfigDict(dict(
        name="parallel", seeds=tuple(range(args.seeds)), streams=streams, stages=stages,
        parallel=(tuple(stages),) if args.together == "on" else (),
        model=dict(backbones=NETWORKS, heads={name: dict(kind="linear", tap=f"{name}/pooled") for name in NETWORKS}),
        tasks={name: dict(kind="classification", head=name, class_names_from=name) for name in NETWORKS},
        report=dict(title="X-rays and photographs in parallel", streams=tuple(f"{name}_test" for name in NETWORKS)),
        log_every=20, checkpoint_every=0))
