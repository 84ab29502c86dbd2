"""Vectors of written characters, learnt on some alphabets and asked on others: losses of metric learning compared.

    python -m transfer_jax.train --config configs/multitask/embedding.py --workdir runs/embedding

Omniglot's two small background sets: 143 characters of five alphabets to learn from, 20 drawings each; tested are the
99 characters of Korean, Sanskrit and Tagalog, none of which was seen, every drawing a query among the 1,979 others. A
published ResNet-8 (CIFAR-10), 150 steps of 64 drawings (16 characters, 4 of each) by Adam. Measured on two CPU cores
that other jobs shared (a load of 8 to 16): 22 min for all arms and seeds. Mean and half width of the 95 % interval over
3 seeds:

                                    recall@1       recall@2       recall@4       MAP@R
    triplets, semi-hard             0.839 ± 0.014  0.903 ± 0.025  0.947 ± 0.012  0.505 ± 0.013
    supervised contrastive          0.824 ± 0.036  0.895 ± 0.018  0.943 ± 0.013  0.491 ± 0.040
    contrastive pairs               0.739 ± 0.051  0.832 ± 0.043  0.894 ± 0.020  0.392 ± 0.056
    cross-entropy, its features     0.643 ± 0.086  0.752 ± 0.064  0.840 ± 0.043  0.240 ± 0.061
    features as published           0.593          0.737          0.832          0.215
    supervised contrastive, random  0.356 ± 0.339  0.467 ± 0.367  0.590 ± 0.371  0.109 ± 0.145

Losses that compare drawings find far better neighbours among new characters than names of the old ones do; triplets and
the supervised contrastive loss do not differ beyond their intervals. Without the photographs of CIFAR-10 as a start so
few steps end below the features as published. Margins and temperature are the papers' usual ones, not searched.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.data.sources.locations import cache_dir

DATA = Path(os.environ.get("TRANSFER_JAX_DATA", "../shared/data"))
WEIGHTS = DATA / "weights" / "mlperf_tiny" / "pretrainedResnet.h5"
SHOWN = dict(image_size=(32, 32), channels=3, mean=0.0, std=1 / 255)  # as these weights were trained
ARCHIVES = ("images_background_small1.zip", "images_background_small2.zip")
UNSEEN = ("Korean", "Sanskrit", "Tagalog")  # alphabets for testing
LOSSES = {"supervised contrastive": dict(kind="supervised_contrastive", temperature=0.1),
          "triplets, semi-hard": dict(kind="triplet", margin=0.2),
          "contrastive pairs": dict(kind="contrastive_pairs", margin=1.0)}


def characters() -> Path:
    """A folder with `seen` and `unseen`, each a folder of classes `<alphabet>_<character>`, unpacked once (where there
    are the archives: the stream says so if not)."""
    folder, source = cache_dir() / "omniglot_small", DATA / "datasets" / "omniglot_small"
    if folder.is_dir() or not source.is_dir():
        return folder
    made = folder.with_name("omniglot_small.part")
    for archive in ARCHIVES:
        with zipfile.ZipFile(source / archive) as files:
            for name in files.namelist():
                if not name.endswith(".png"):
                    continue
                alphabet, character, file = Path(name).parts[-3:]
                place = made / ("unseen" if alphabet in UNSEEN else "seen") / f"{alphabet}_{character}" / file
                place.parent.mkdir(parents=True, exist_ok=True)
                with files.open(name) as read, open(place, "wb") as write:
                    shutil.copyfileobj(read, write)
    return made.replace(folder)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`steps` of each arm; `seeds`: how many; `classes_per_batch`: characters in a batch of 64."""
    args = parse_arg(arg, steps=150, seeds=3, classes_per_batch=16)
    folder = characters()

    def stream(part: str, **more: object) -> dict:
        return dict(data=dict(kind="folder", path=str(folder / part)), batch_size=64, **SHOWN, **more)

    def arm(title: str, loss: dict, task: str = "vector", asked: str = "vector", init: str = "fresh") -> dict:
        return dict(title=title, tags=dict(method=title), init=init, steps=args.steps, lr=2e-3,
                    schedule=dict(kind="cosine"), evaluate=dict(unseen=asked),
                    objective=dict(terms=dict(learn=dict(loss, task=task, stream="seen"))))

    published = "features as published"
    stages = dict(published=dict(title=published, tags=dict(method=published), init="fresh", steps=0,
                                 evaluate=dict(unseen="features")),
                  names=arm("cross-entropy, its features", dict(kind="task"), "names", "features"))
    stages |= {loss["kind"]: arm(title, loss) for title, loss in LOSSES.items()}
    stages["scratch"] = arm("supervised contrastive, random", LOSSES["supervised contrastive"], init="random")
    return ml_collections.ConfigDict(dict(
        name="embedding", seeds=tuple(range(args.seeds)),
        model=dict(backbones=dict(backbone=dict(kind="mlperf_resnet8")),
                   heads=dict(names=dict(kind="linear"), vector=dict(kind="embedding"),
                              features=dict(kind="embedding", layer=False))),
        pretrained=dict(backbone=dict(source=str(WEIGHTS))),
        tasks=dict(names=dict(kind="classification", head="names"), vector=dict(kind="embedding", head="vector"),
                   features=dict(kind="embedding", head="features")),
        streams=dict(seen=stream("seen", classes_per_batch=args.classes_per_batch,
                                 augment=(dict(kind="crop", padding=3),)), unseen=stream("unseen")),
        stages=stages, report=dict(metric="recall_at_1", streams=("unseen",), reference="cross-entropy, its features"),
        checkpoint_every=0, log_every=50))
