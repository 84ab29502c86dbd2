"""Quickstart draft."""

import ml_collections

from transfer_jax.core.config import parse_arg

LABELS = (1, 5, 10)


def task(stream: str) -> dict:
    """The supervised term of the digits task on a stream."""
    return dict(kind="task", task="digits", stream=stream)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`steps`: updates of every stage on the target; `seeds`: how many seeds."""
    args = parse_arg(arg, steps=200, pretrain_steps=400, seeds=5, batch=32)

    def stream(name: str, **more) -> dict:
        return dict(data=dict(kind="tfds", name=name), batch_size=args.batch, domain=name, **more)

    streams = dict(
        source=stream("digits"),
        source_test=stream("digits", split="test"),
        target_unlabelled=stream("digits_photo", split="train+test", labelled=False),
        target_test=stream("digits_photo", split="train+test", per_class="[10:]"),
    )
    for labels in LABELS:
        streams[f"target_{labels}"] = stream("digits_photo", split="train+test", labels_per_class=labels)

    common = dict(steps=args.steps, evaluate=dict(target_test="digits"), schedule=dict(kind="cosine"))
    frozen = dict(partition=(("heads/digits/.*", "head"), (".*", "frozen")))
    stages = dict(
        pretrain=dict(init="fresh", steps=args.pretrain_steps, lr=2e-3, schedule=dict(kind="cosine"),
                      objective=dict(terms=dict(digits=task("source"))), evaluate=dict(source_test="digits")),
        as_is=dict(init="pretrain", evaluate=dict(target_test="digits"), embed="target_test",
                   title="source model as it is", tags=dict(method="source model as it is")),
    )
    for labels in LABELS:
        target = dict(objective=dict(terms=dict(digits=task(f"target_{labels}"))), **common)

        def tags(method: str, labels: int = labels) -> dict:
            return dict(title=f"{method}, {labels} labels", tags=dict(method=method, labels=labels))

        stages |= {
            f"scratch_{labels}": dict(init="fresh", lr=2e-3, **target, **tags("from scratch")),
            f"linear_{labels}": dict(init="pretrain", new=("heads/digits/.*",), groups=dict(head=dict(lr=1e-2)), **frozen,
                                     **target, **tags("linear classifier on frozen features")),
            f"finetune_{labels}": dict(init="pretrain", new=("heads/digits/.*",), lr=1e-3, **target,
                                       **tags("full fine-tuning")),
            f"lp_ft_{labels}": dict(init=f"linear_{labels}", lr=3e-4, **target,
                                    **tags("linear probe, then fine-tuning")),
        }
    unlabelled = dict(init="pretrain", lr=1e-3, **common)
    pair = dict(streams=dict(source="source", target="target_unlabelled"))
    stages |= dict(
        adversarial=dict(objective=dict(terms=dict(digits=task("source"), domain=dict(
            kind="domain_adversarial", head="domain", **pair))), **unlabelled, title="domain-adversarial, no target labels",
            tags=dict(method="domain-adversarial, no target labels")),
        coral=dict(objective=dict(terms=dict(digits=task("source"), coral=dict(kind="deep_coral", weight=10.0, **pair))),
                   **unlabelled, title="covariance alignment, no target labels",
                   tags=dict(method="covariance alignment, no target labels")),
    )
    return ml_collections.ConfigDict(dict(
        name="quickstart", seeds=tuple(range(args.seeds)),
        model=dict(backbones=dict(backbone=dict(kind="small_cnn")),
                   heads=dict(digits=dict(kind="linear"), domain=dict(kind="mlp", outputs=1, hidden=(64,)))),
        streams=streams, tasks=dict(digits=dict(kind="classification", head="digits")), stages=stages,
        report=dict(streams=("target_test",), row="method", x="labels"), log_every=50, checkpoint_every=0,
    ))
