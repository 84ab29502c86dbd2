"""One task from two data sets of unlike sizes: digits of MNIST and of house numbers merged, mixed in several ways.

    python -m transfer_jax.train --config configs/multitask/merging.py --workdir runs/merging

4,000 digits of MNIST and 583 house numbers (SVHN crops) of the folder that `TRANSFER_JAX_DATA` names; 1,000 and 500
others for testing. Measured on two CPU cores beside the test suite, 400 steps of 32 an arm, all in 6 min; accuracy,
mean ± half width of the 95 % interval over 3 seeds:

    arm                    MNIST          SVHN           together
    mnist alone            0.799 ± 0.061  0.079 ± 0.040  0.559 ± 0.042
    svhn alone             0.230 ± 0.034  0.282 ± 0.005  0.248 ± 0.021
    merged, by size        0.752 ± 0.050  0.235 ± 0.014  0.580 ± 0.038
    merged, temperature 3  0.691 ± 0.013  0.248 ± 0.009  0.543 ± 0.012
    merged, equal parts    0.646 ± 0.061  0.251 ± 0.003  0.514 ± 0.040

The shares do what they say: the more often house numbers come, the better they are read and the worse the digits. At
this length merging helps neither set on its own test (each alone is better there), only the one network that has to
read both; all arms are far from trained out. Other lengths, networks and temperatures were not tried.
"""

from __future__ import annotations

import os
from pathlib import Path

import ml_collections

from transfer_jax.core.config import parse_arg

DATA = Path(os.environ.get("TRANSFER_JAX_DATA", "../shared/data")) / "datasets"
DIGITS = tuple("0123456789")
MNIST = dict(kind="idx", domain="mnist")
SVHN = dict(kind="arrays", path=str(DATA / "svhn_crops" / "svhn_train_first1083.npz"), class_names=DIGITS,
            arrays=dict(train_image="x", train_label="y"), domain="svhn")
LEARNT = 583  # of the 1,083 house numbers; the others are for testing
MIXES = {"merged, by size": None, "merged, temperature 3": dict(kind="temperature", temperature=3.0),
         "merged, equal parts": dict(kind="equal")}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`digits`: how many of MNIST are learnt from; `steps` of each arm; `seeds`: how many."""
    args = parse_arg(arg, digits=4000, steps=400, seeds=3)
    parts = dict(mnist=dict(MNIST, split=f"train[:{args.digits}]"), svhn=dict(SVHN, split=f"train[:{LEARNT}]"))

    def stream(*chosen: dict, **more: object) -> dict:
        return dict(data=dict(kind="merge", parts=chosen), image_size=(32, 32), channels=3, batch_size=32, **more)

    streams = {name: stream(part) for name, part in parts.items()}
    arms = {name: f"{name} alone" for name in parts}
    for number, (title, mix) in enumerate(MIXES.items()):
        streams[f"merged{number}"] = stream(*parts.values(), **({"mix": mix} if mix else {}))
        arms[f"merged{number}"] = title
    streams["test"] = stream(dict(MNIST, split="test[:1000]"), dict(SVHN, split=f"train[{LEARNT}:]"))
    stages = {name: dict(title=title, tags=dict(method=title), init="fresh", steps=args.steps, lr=3e-3,
                         schedule=dict(kind="cosine"), evaluate=dict(test="digits"),
                         objective=dict(terms=dict(digits=dict(kind="task", task="digits", stream=name))))
              for name, title in arms.items()}
    return ml_collections.ConfigDict(dict(
        name="merging", seeds=tuple(range(args.seeds)),
        model=dict(backbones=dict(backbone=dict(kind="small_cnn", widths=(8, 16, 32, 32), norm="group")),
                   heads=dict(digits=dict(kind="linear"))),
        tasks=dict(digits=dict(kind="classification", head="digits")), streams=streams, stages=stages,
        report=dict(metric="accuracy/svhn", streams=("test",)), checkpoint_every=0, log_every=50))
