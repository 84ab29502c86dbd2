"""The four situations: ten recipes on little and much data, like the source (half B) and unlike it (house numbers),
and what the advisor chooses, who sees the network of half A and the training images alone.

    python -m transfer_jax.train --config configs/ablations/situations.py --workdir runs/situations
    for stream in similar_small similar_large different_small different_large; do
        python -m transfer_jax.advise --run runs/situations@base --stream $stream --verify --steps 120
    done

Little is 10 labels per class; much is 400 of half B and 60 of the house numbers, which are all there are.

Measured on two CPU cores that were very busy with other work, in 69 min (19 min of processor time), the advice in 8
min (9 min of processor time); accuracy over 3 seeds. Little data like the source: the linear probe (0.572 ± 0.033)
and the last block (0.570 ± 0.062) lead, all at one rate has 0.537 ± 0.050, from scratch 0.466 ± 0.116. Much of it:
everything at one rate from pretrained values, 0.716 ± 0.043, with layer-wise decay 0.703 ± 0.043, ahead of from
scratch (0.653 ± 0.073), of low-rank changes (0.618 ± 0.038) and of the probe (0.597 ± 0.035). House numbers, unlike
the source: full training from pretrained values again, 0.293 ± 0.050 with 60 per class against 0.193 ± 0.072 from
scratch; with 10 per class all are near chance (0.164 ± 0.029 at best). 120 steps are few. The textbook's cut for
little data unlike the source does not help here.

The advisor's rule alone names the best recipe for little data of both kinds (regret 0.000), is too timid for much
data like the source (probing, then fine-tuning: 0.068 ± 0.017), and takes the house numbers for like the source in
two of three seeds where there are 60 per class (0.102 ± 0.224). Trying four recipes on four fifths of the
training images mends these two (0.013 ± 0.011 and 0.000) and spoils the others (0.034 ± 0.034 and 0.060 ± 0.045),
where the fifth that is held out has 10 or 20 images. Mean regret: rule 0.042 ± 0.052, after trying 0.027 ± 0.006,
always a linear probe 0.085 ± 0.029, always layer-wise decay 0.020 ± 0.016, always all at one rate 0.009 ± 0.009: with
this network and these targets nothing beats the simplest choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_collections
from halves import DATA, NORMALIZED, arguments, cifar, experiment, recipe, setting

SVHN = dict(kind="arrays", path=str(DATA / "svhn_crops" / "svhn_train_first1083.npz"),
            arrays=dict(train_image="x", train_label="y"))
CUTS = ("stem", "stage1", "stage2")  # all depths at which the advisor may cut the network
RECIPES = {"linear probe": "linear_probe", **{f"cut behind {tap}": f"truncate(tap={tap})" for tap in CUTS},
           "last block": "partial(k=1)", "probe, then fine-tuning": "lp_ft",
           "low rank": "lora(rank=4)", "layer decay": "layer_decay",
           "all at one rate": "situation(data=large_different)", "from scratch": "scratch"}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """See the module's docstring for the arguments that all ablations share."""
    args = arguments(arg)

    def numbers(**selection: object) -> dict:
        return dict(data=SVHN, batch_size=32, split_seed=0, **NORMALIZED, **selection)

    targets = {"similar, small": ("b", cifar("b", labels_per_class=10)), "similar, large":
               ("b", cifar("b", labels_per_class=400)), "different, small": ("n", numbers(per_class="[:10]")),
               "different, large": ("n", numbers(per_class="[:60]"))}
    streams = dict(b_test=cifar("b", "test"), n_test=numbers(per_class="[60:]"))
    stages: dict = {}
    heads: dict = {}
    for situation, (target, stream) in targets.items():
        name = situation.replace(", ", "_")
        streams[name] = stream
        for method, text in RECIPES.items():
            tap = text.partition("tap=")[2].strip(")")
            told = setting(args, f"{target}_{tap}" if tap else target, name, (f"{target}_test",))
            found, own = recipe(text, told, f"{text.partition('(')[0]}_{f'{tap}_' if tap else ''}{name}",
                                dict(method=method, situation=situation, recipe=text))
            stages.update(found)
            heads.update(own)
    return experiment(args, "situations", "The four situations of transfer", streams, stages,
                      report=dict(streams=("b_test", "n_test"), x="situation", reference="from scratch"),
                      tasks={head: f"{head.partition('_')[0]}_test" for head in heads}, heads=heads)


def get_sweep(arg: str | None = None) -> Iterator[dict]:
    """The little data halved and doubled."""
    yield from ({"streams.similar_small.labels_per_class": labels} for labels in (5, 20))
