"""Weight sharing: same task, other domain, at once.

Two streams, many plain digits and a few over photographs, go through one backbone and one head, and both losses are
minimised together. MNIST and MNIST-M with `:data=mnist`.

    python -m transfer_jax.train --config configs/matrix/weight_sharing.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/weight_sharing.py:data=mnist --workdir DIR

Measured on 2 CPU cores, not always idle, with nothing compiled before: 27 s embedded, 33 s with MNIST, all seeds
together. Score (accuracy) on test data: mean ± half width of the 95 % interval over 3 seeds, and the difference to
training alone, seed by seed:

    :data=embedded                              score            difference
      trained alone, plain_test                 0.929 ± 0.022    -
      trained alone, photo_test                 0.597 ± 0.170    -
      both domains, shared weights, plain_test  0.939 ± 0.038    +0.010 ± 0.058
      both domains, shared weights, photo_test  0.700 ± 0.000    +0.103 ± 0.170

    :data=mnist                                 score            difference
      trained alone, plain_test                 0.907 ± 0.022    -
      trained alone, photo_test                 0.299 ± 0.034    -
      both domains, shared weights, plain_test  0.882 ± 0.051    -0.025 ± 0.052
      both domains, shared weights, photo_test  0.396 ± 0.011    +0.097 ± 0.025

The few photographed digits gain from the many plain ones; on the embedded data 3 seeds leave the gain within its
interval, on MNIST-M it is clear. The plain digits neither gain nor lose beyond their interval. Both streams go
through one forward pass, so that BatchNorm sees one batch; nothing else was tried.
"""

from __future__ import annotations

import ml_collections
from cells import arguments, arm, digits, digits_test, experiment, term


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`labels`: labels per class over photographs; `steps`: updates of each arm."""
    args = arguments(arg, labels=10, steps=300)
    streams = dict(
        plain=digits(args, "plain"),
        photo=digits(args, "photo", labels_per_class=args.labels),
        plain_test=digits_test(args, "plain"),
        photo_test=digits_test(args, "photo"),
    )
    terms = {domain: term("digits", domain) for domain in ("plain", "photo")}
    stages = {f"{domain}_alone": arm("trained alone", {domain: terms[domain]}, {f"{domain}_test": "digits"}, args.steps)
              for domain in terms}
    stages["shared"] = arm("both domains, shared weights", terms, dict(plain_test="digits", photo_test="digits"),
                           args.steps, batch_norm="joint")
    return experiment("weight_sharing", args, ("digits",), streams, stages, ("photo_test", "plain_test"))
