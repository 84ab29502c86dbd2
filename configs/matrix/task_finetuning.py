"""DOC"""

from __future__ import annotations

from typing import Any

import ml_collections
from cells import GENTLE, arguments, arm, digits, digits_test, experiment, term

LABELS = (1, 5, 10)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: target labels per class; `steps`: updates of each arm."""
    args = arguments(arg, labels=5, steps=150, pretrain_steps=300)
    target = "plain" if args.data == "embedded" else "usps"
    streams = dict(
        # One seed draws one order of the digits: the first 10 of each class serve as the target, the others as source.
        source=digits(args, "plain", per_class="[10:]" if args.data == "embedded" else "[:100]"),
        target=digits(args, target, labels_per_class=args.labels),
        target_test=digits_test(args, target),
    )
    name, test = dict(digits=term("digits", "target")), dict(target_test="digits")
    stages = dict(
        pretrain=arm("source model as it is", dict(digits=term("digits", "source")), test, args.pretrain_steps),
        scratch=arm("from scratch", name, test, args.steps),
        finetune=arm("fine-tuning", name, test, args.steps, "pretrain", **GENTLE),
    )
    return experiment("task_finetuning", args, ("digits",), streams, stages, ("target_test",))


def get_sweep(arg: str | None = None) -> list[dict[str, Any]]:
    """One run for each number of target labels per class."""
    return [{"streams.target.labels_per_class": labels} for labels in LABELS]
