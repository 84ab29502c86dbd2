"""Two inputs of one document: picture and words of receipts, with two tasks that share both towers and a joint middle."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.data.sources.locations import cache_dir

DATA = Path(os.environ.get("TRANSFER_JAX_DATA", "../shared/data")) / "datasets"
SIZES = {"lines": (24, 96), "pages": (64, 64)}
BATCHES = {"lines": 64, "pages": 16}
UNITS = {"lines": "line", "pages": "page"}
TOWERS = {"image": "image", "text": "tokens"}
# What the joint middle is given -> the inputs of a stream.
GIVEN = {"both": ("image", "text"), "text": ("text",), "image": ("image",)}


def receipts() -> str:
    """The folder of the receipts, unpacked once (where there are any: the stream says so if not)."""
    folder, archive = cache_dir() / "sroie_subset", DATA / "sroie_subset" / "sroie_subset.zip"
    if not folder.is_dir() and archive.is_file():
        with zipfile.ZipFile(archive) as files:
            files.extractall(folder)
    return str(folder)


def inputs(given: str, middle: str) -> dict:
    """The towers that are given and what the middle reads of them."""
    towers = {tower: TOWERS[tower] for tower in GIVEN[given]}
    return {**towers, middle: tuple(f"{tower}/pooled" if tower in towers else "missing" for tower in TOWERS)}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`steps` of each arm; `seeds`: how many; `hidden`: probability with which an input is hidden in the last arm."""
    args = parse_arg(arg, steps=300, seeds=3, hidden=0.3)
    backbones = dict(image=dict(kind="small_cnn", widths=(8, 16, 32), norm="group"),
                     text=dict(kind="word_average", width=32, hidden=(32,)),
                     middle=dict(kind="fusion", width=32, hidden=(32,)),
                     dropped=dict(kind="fusion", width=32, hidden=(32,), modality_dropout=args.hidden))
    streams, heads, tasks = {}, {}, {}
    for unit, size in SIZES.items():
        common = dict(data=dict(kind="sroie", path=receipts(), unit=UNITS[unit]), batch_size=BATCHES[unit],
                      image_size=size, channels=1)
        for middle in ("middle", "dropped"):
            heads[f"{unit}_{middle}"] = dict(kind="linear", tap=f"{middle}/pooled")
            tasks[f"{unit}_{middle}"] = dict(kind="classification", head=f"{unit}_{middle}")
            for given in GIVEN:
                for split in ("train", "test"):
                    streams[f"{unit}_{given}_{middle}_{split}"] = dict(common, split=split,
                                                                      inputs=inputs(given, middle))

    def arm(title: str, given: str, tested: tuple[str, ...], units: tuple[str, ...] = tuple(SIZES),
            middle: str = "middle") -> dict:
        terms = {unit: dict(kind="task", task=f"{unit}_{middle}", stream=f"{unit}_{given}_{middle}_train")
                 for unit in units}
        return dict(title=title, tags=dict(method=title), init="fresh", steps=args.steps, lr=3e-3,
                    schedule=dict(kind="cosine"), objective=dict(terms=terms),
                    evaluate={f"{unit}_{test}_{middle}_test": f"{unit}_{middle}" for unit in units for test in tested})

    stages = dict(
        image=arm("picture alone", "image", ("image",)), text=arm("words alone", "text", ("text",)),
        lines=arm("both inputs, one task", "both", ("both",), ("lines",)),
        pages=arm("both inputs, one task", "both", ("both",), ("pages",)),
        both=arm("both inputs, both tasks", "both", tuple(GIVEN)),
        dropped=arm("both, one hidden at times", "both", tuple(GIVEN), middle="dropped"))
    return ml_collections.ConfigDict(dict(
        name="receipts", seeds=tuple(range(args.seeds)), model=dict(backbones=backbones, heads=heads), tasks=tasks,
        streams={name: stream for name, stream in streams.items()
                 if any(name in (*stage["evaluate"], *(term["stream"] for term in stage["objective"]["terms"].values()))
                        for stage in stages.values())},
        stages=stages, report=dict(metric="mean_class_accuracy"), checkpoint_every=0, log_every=50))
