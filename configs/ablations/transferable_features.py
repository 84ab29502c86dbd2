"""How transferable are features (Yosinski et al. 2014): half A's first n blocks, frozen (AnB) or not (AnB+), for half
B, beside B's own first n blocks, kept (BnB) or not (BnB+).

    python -m transfer_jax.train --config configs/ablations/transferable_features.py --workdir runs/transferable
    python -m transfer_jax.sweep --config configs/ablations/transferable_features.py --workdir runs/transferable_sweep

The sweep repeats it with 20 and 100 labels per class of B.

Measured on two CPU cores, busy with other work, in 22 min with `:base=` (the network of half A taken from another
ablation); accuracy on B over 3 seeds, all labels; B's own network answers 0.791 ± 0.018. The paper's main effect is
seen: features of A grow specific with depth, frozen they give 0.779 ± 0.015, 0.748 ± 0.048 and 0.630 ± 0.043 for n =
1, 2, 3, less than B's own at n = 3 by 0.162 ± 0.050. Let move, they recover (AnB+ 0.802, 0.796, 0.813). Not seen:
co-adapted layers that cannot be relearned (BnB stays at 0.797, 0.797, 0.792), and a lasting gain of AnB+ over BnB+
(0.809, 0.827, 0.841), for which the paper had a larger source.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_collections
from halves import arguments, cifar, experiment

BLOCKS = ("(conv1|bn1|stage1)", "stage2", "stage3")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: of B per class, 0 for all; `steps`: of every network."""
    args = arguments(arg, steps=400, labels=0)
    chosen = dict(labels_per_class=args.labels) if args.labels else {}
    stages = dict(base_b=network(args, "random", (), "base B", {}))
    for n in range(1, len(BLOCKS) + 1):
        for source, start in (("A", "base"), ("B", "base_b")):
            for kept in ("", "+"):
                name = f"{source}nB{kept}"
                stages[f"{source.lower()}{n}b{'_plus' if kept else ''}"] = network(
                    args, start, () if kept else BLOCKS[:n], f"{name}, n = {n}", dict(method=name, depth=n), BLOCKS[n:])
    return experiment(args, "transferable-features", "How transferable are features",
                      dict(b=cifar("b", augment=(dict(kind="flip"),), **chosen), b_test=cifar("b", "test")), stages,
                      report=dict(streams=("b_test",), x="depth", reference="BnB"))


def network(args: ml_collections.ConfigDict, init: str, frozen: tuple[str, ...], title: str, tags: dict,
            new: tuple[str, ...] = ()) -> dict:
    """A network for B from `init`, with `frozen` blocks kept and `new` ones and the head drawn afresh."""
    rules = tuple((f"backbone/{block}/.*", "frozen") for block in frozen)
    fresh = (*(f"backbone/{block}/.*" for block in new), "heads/b/.*")
    return dict(title=title, tags=tags, init=init, new=() if init == "random" else fresh, steps=args.steps, lr=3e-3,
                schedule=dict(kind="cosine"), warmup_steps=20, partition=(*rules, (".*", "all")), groups=dict(all={}),
                objective=dict(terms=dict(b=dict(kind="task", task="b", stream="b"))), evaluate=dict(b_test="b"))


def get_sweep(arg: str | None = None) -> Iterator[dict]:
    """The same with fewer labels of B."""
    yield from ({"streams.b.labels_per_class": labels} for labels in (20, 100))
