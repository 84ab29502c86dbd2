"""Vectors of written characters, learnt on some alphabets and asked on others: losses of metric learning compared.

    python -m transfer_jax.train --config configs/multitask/embedding.py --workdir runs/embedding

MEASURED
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
    stages["scratch"] = arm("supervised contrastive, from scratch", LOSSES["supervised contrastive"], init="random")
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
