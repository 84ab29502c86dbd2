"""Task fine-tuning: same task, same domain, in sequence.

A network that can name plain digits goes on with a few labels per class of others: with `:data=embedded` digits of
the same collection that pretraining did not see, with `:data=mnist` USPS after MNIST. `source model as it is` is the
network before that.

    python -m transfer_jax.train --config configs/matrix/task_finetuning.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/task_finetuning.py:data=mnist --workdir DIR

    python -m transfer_jax.sweep --config configs/matrix/task_finetuning.py --workdir DIR  # 1, 5, 10 labels

Measured on 2 CPU cores, not always idle, with nothing compiled before: 27 s embedded, 25 s with MNIST, all seeds
together. Score (accuracy) on test data: mean ± half width of the 95 % interval over 3 seeds, and the difference to
training from scratch, seed by seed:

    :data=embedded           score            difference
      source model as it is  0.926 ± 0.029    +0.164 ± 0.084
      from scratch           0.761 ± 0.103    -
      fine-tuning            0.924 ± 0.033    +0.162 ± 0.077

    :data=mnist              score            difference
      source model as it is  0.573 ± 0.078    -0.168 ± 0.164
      from scratch           0.741 ± 0.086    -
      fine-tuning            0.792 ± 0.058    +0.051 ± 0.044

Fine-tuning beats training from scratch on the embedded digits, but not the source model as it is: where source and
target are one collection, 5 labels add nothing. From MNIST to USPS they do, and the gain over training from scratch is
just clear of zero. Learning rate 5e-3 throughout, the backbone at a fifth of it; nothing else was tried.
"""

from __future__ import annotations

from typing import Any

import ml_collections
from cells import GENTLE, arguments, arm, digits, digits_test, experiment, term

LABELS = (1, 5, 10)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: target labels per class, 10 at most; `steps`: updates of each arm."""
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
