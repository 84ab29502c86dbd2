"""Any backbone with pretrained parameters on the user's own images.

    python -m transfer_jax.train --config configs/finetune.py:data=DIR,weights=SRC[,key=value ...] --workdir DIR

data: a folder of class folders (with or without train/ and val/ or test/ inside), a .csv or .parquet table of paths and
    labels, or tfds:NAME. weights: what `source` may be (docs/pretrained.md); empty: random parameters. backbone: a name
    that `python -m transfer_jax.models` lists, where the weights do not say it.
recipe: a name of transfer_jax.recipes.RECIPES with its arguments, such as linear_probe, lp_ft (half of the epochs like
    this, then everything, the backbone at a tenth of the rate), finetune (everything at once), partial(k=2),
    gradual_unfreeze(parts=3;factor=2.6), lora(rank=4), scratch: docs/sequential.md tells of all.
epochs, batch_size, lr (of the head; ten times as much while the backbone is frozen), image_size (0: what the weights
    say), seeds, holdout (percent of each class for evaluation where the data have no split of their own).
normalize: imagenet, half, unit or bytes, for weights that do not tell their preprocessing (default: imagenet).
source_classes: how many the published classifier has, for recipes that use it with weights that do not tell (lwf).

Measured on the 7 x 28 photographs of a PACS subset, half of them for training, with image_size=128, epochs=20, seeds=3,
holdout=50; accuracy, mean and half width of the 95 % interval over the seeds, two cores of a busy CPU:

| recipe | mobilenet_v1_retinaface | tiny_darknet, normalize=unit |
|---|---|---|
| linear_probe | 0.884 ± 0.053, 58 s | 0.905 ± 0.039, 150 s |
| lp_ft, after the head | 0.867 ± 0.025, 40 s | 0.895 ± 0.081, 65 s |
| lp_ft, at the end | 0.786 ± 0.067, 171 s more | 0.864 ± 0.169, 235 s more |
| scratch | 0.235 ± 0.076, 228 s | |

With 14 images a class the frozen backbone wins; moving everything at the default rate forgets more than it learns.
"""

from __future__ import annotations

from pathlib import Path

import ml_collections

from transfer_jax.core.config import parse_arg
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component
from transfer_jax.data import open_source
from transfer_jax.pretrained.description import Description, describe
from transfer_jax.pretrained.sources import fetch
from transfer_jax.recipes import Setting, expand

# Mean and standard deviation of values in [0, 1], for weights that do not tell theirs.
NORMALIZE = {"imagenet": dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), "half": dict(mean=0.5, std=0.5),
             "unit": dict(mean=0.0, std=1.0), "bytes": dict(mean=0.0, std=1 / 255)}
EVALUATION_SPLITS = ("val", "valid", "validation", "test")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """See the module's docstring for the arguments."""
    args = parse_arg(arg, data="", backbone="", weights="", recipe="lp_ft", epochs=10, batch_size=32, lr=1e-3,
                     image_size=0, seeds=1, holdout=20, normalize="", source_classes=0)
    if args.normalize and args.normalize not in NORMALIZE:
        raise unknown("normalize", args.normalize, NORMALIZE, repr(arg))
    if not args.data:
        raise UserError("configs/finetune.py needs data=FOLDER, data=TABLE.csv or data=tfds:NAME")
    source = describe(fetch(args.weights).path, args.weights) if args.weights else Description()
    backbone = backbone_of(args, source)
    setting = Setting(backbone, dict(source=args.weights) if args.weights else {}, epochs=args.epochs, lr=args.lr,
                      source_classes=args.source_classes or (source.head or {}).get("classes", 0)
                      or len(source.classes or ()))
    return ml_collections.ConfigDict(dict(
        name=f"finetune-{backbone['kind']}-{args.recipe}",
        seeds=tuple(range(args.seeds)),
        streams=streams(args, source),
        report=dict(title=f"{backbone['kind']} on {args.data}", streams=("evaluation",)),
        **expand(args.recipe, setting)))


def backbone_of(args: ml_collections.ConfigDict, source: Description) -> dict:
    """The backbone that was asked for, with the arguments that the source tells of."""
    told = dict(source.backbone or {})
    if not args.backbone and not told:
        raise UserError("the weights do not say which backbone they are for; add backbone=NAME (python -m "
                        "transfer_jax.models lists them)")
    kind = args.backbone or told["kind"]
    return told if told.get("kind") == kind else dict(kind=kind)


def streams(args: ml_collections.ConfigDict, source: Description) -> dict:
    """Training and evaluation images, prepared as the source says; without a split of its own, the data are held out
    class by class."""
    data = data_component(args.data)
    splits = list(open_source(Component(**data)))
    size = (args.image_size, args.image_size) if args.image_size else None
    prepared = source.stream_arguments(size)
    if source.preprocessing is None:
        prepared = dict(prepared, **(dict(fit="crop", channels=3) if size else {}))
    if args.normalize or (args.weights and source.preprocessing is None):
        prepared.update(NORMALIZE[args.normalize or "imagenet"])
    common = dict(data=data, batch_size=args.batch_size, **prepared)
    held_out = next((name for name in EVALUATION_SPLITS if name in splits), None)
    if held_out:
        train, evaluation = dict(common, split="train"), dict(common, split=held_out)
    else:
        kept = 100 - args.holdout
        train = dict(common, per_class=f"[:{kept}%]", split_seed=0)
        evaluation = dict(common, per_class=f"[{kept}%:]", split_seed=0)
    return dict(train=dict(train, augment=(dict(kind="flip"),)), evaluation=evaluation)


def data_component(text: str) -> dict:
    """'tfds:NAME', a table of paths and labels, or a folder of class folders."""
    kind, _, name = text.partition(":")
    if kind == "tfds" and name:
        return dict(kind="tfds", name=name)
    table = Path(text).suffix.lower() in (".csv", ".parquet", ".pq")
    return dict(kind="table" if table else "folder", path=text)
