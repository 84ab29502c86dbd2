"""Domain adaptation: same task, other domain, in sequence.

From plain digits to digits over photographs: with a few target labels per class (pretrain, then fine-tune), and with
none (two methods that align the features of both domains). MNIST-M takes the place of the photographs with
`:data=mnist`.

    python -m transfer_jax.train --config configs/matrix/domain_adaptation.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/domain_adaptation.py:data=mnist --workdir DIR

Measured on 2 CPU cores, not always idle, with nothing compiled before: 40 s embedded, 45 s with MNIST, all seeds
together. Score (accuracy) on test data: mean ± half width of the 95 % interval over 3 seeds, and the difference to
training from scratch, seed by seed:

    :data=embedded                            score            difference
      source model as it is                   0.372 ± 0.026    -0.032 ± 0.106
      from scratch, 5 labels per class        0.403 ± 0.080    -
      fine-tuning, 5 labels per class         0.568 ± 0.087    +0.165 ± 0.155
      domain-adversarial, no target labels    0.523 ± 0.059    +0.120 ± 0.122
      covariance alignment, no target labels  0.542 ± 0.103    +0.138 ± 0.180

    :data=mnist                               score            difference
      source model as it is                   0.107 ± 0.004    -0.118 ± 0.053
      from scratch, 5 labels per class        0.225 ± 0.050    -
      fine-tuning, 5 labels per class         0.320 ± 0.019    +0.095 ± 0.043
      domain-adversarial, no target labels    0.255 ± 0.044    +0.030 ± 0.022
      covariance alignment, no target labels  0.217 ± 0.046    -0.008 ± 0.070

With labels, transfer helps on both. Without labels both alignments lift the embedded source model above 5 labels per
class from scratch, though 3 seeds leave that difference within its interval; on MNIST-M, where 1,000 source digits
leave the source model at chance, they come out far below what few labels give to fine-tuning. Weight 10 of the
alignment and the settings of the adversary are the first that were tried.
"""

from __future__ import annotations

import ml_collections
from cells import GENTLE, arguments, arm, digits, digits_test, experiment, term


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: target labels per class; `steps`: updates of each arm; `validate`: judge the arms without target labels
    by validators, ten times on their way."""
    args = arguments(arg, labels=5, steps=200, pretrain_steps=300, validate=False)
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
    unlabelled = dict(init="pretrain", batch_norm="joint")
    if args.validate:
        streams["source_test"] = digits_test(args, "plain")
        unlabelled |= dict(validation=dict(target="target_unlabelled", source="source_test", task="digits"),
                           eval_every=max(1, args.steps // 10))
    stages = dict(
        pretrain=arm("source model as it is", source, test, args.pretrain_steps),
        scratch=arm(f"from scratch, {args.labels} labels per class", target, test, args.steps),
        finetune=arm(f"fine-tuning, {args.labels} labels per class", target, test, args.steps, "pretrain", **GENTLE),
        adversarial=arm("domain-adversarial, no target labels", adversarial, test, args.steps, **unlabelled),
        coral=arm("covariance alignment, no target labels", alignment, test, args.steps, **unlabelled),
    )
    return experiment("domain_adaptation", args, ("digits",), streams, stages, ("target_test",),
                      heads=dict(domain=dict(kind="mlp", outputs=1, hidden=(64,))))
