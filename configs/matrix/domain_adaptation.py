"""DOC"""

from __future__ import annotations

import ml_collections
from cells import GENTLE, arguments, arm, digits, digits_test, experiment, term


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: target labels per class; `steps`: updates of each arm."""
    args = arguments(arg, labels=5, steps=200, pretrain_steps=300)
    streams = dict(
        source=digits(args, "plain"),
        target=digits(args, "photo", labels_per_class=args.labels),
        target_unlabelled=digits(args, "photo", labelled=False),
        target_test=digits_test(args, "photo"),
    )
    source, target = (dict(digits=term("digits", stream)) for stream in ("source", "target"))
    pair = dict(streams=dict(source="source", target="target_unlabelled"))
    adversarial = source | dict(domain=dict(kind="domain_adversarial", head="domain", **pair))
    alignment = source | dict(coral=dict(kind="deep_coral", weight=10.0, **pair))
    test = dict(target_test="digits")
    unlabelled = dict(init="pretrain", joint_forward=True)
    stages = dict(
        pretrain=arm("source model as it is", source, test, args.pretrain_steps),
        scratch=arm(f"from scratch, {args.labels} labels per class", target, test, args.steps),
        finetune=arm(f"fine-tuning, {args.labels} labels per class", target, test, args.steps, "pretrain", **GENTLE),
        adversarial=arm("domain-adversarial, no target labels", adversarial, test, args.steps, **unlabelled),
        coral=arm("covariance alignment, no target labels", alignment, test, args.steps, **unlabelled),
    )
    return experiment("domain_adaptation", args, ("digits",), streams, stages, ("target_test",),
                      heads=dict(domain=dict(kind="mlp", outputs=1, hidden=(64,))))
