"""Dataset merging: same task, same domain, at once.

Two small labelled sets of plain digits merged into one stream, against each of them alone with as many updates. With
`:data=mnist` the sets are MNIST and USPS. All seeds see the same rows, so the spread is that of training alone.

    python -m transfer_jax.train --config configs/matrix/dataset_merging.py --workdir DIR
    python -m transfer_jax.train --config configs/matrix/dataset_merging.py:data=mnist --workdir DIR

Measured on 2 CPU cores, not always idle, with nothing compiled before: 21 s embedded, 26 s with MNIST, all seeds
together. Score (accuracy) on test data: mean ± half width of the 95 % interval over 3 seeds, and the difference to
the first set alone, seed by seed:

    :data=embedded      score            difference
      first set alone   0.849 ± 0.051    -
      second set alone  0.794 ± 0.159    -0.056 ± 0.108
      both sets merged  0.865 ± 0.072    +0.015 ± 0.044

    :data=mnist                     score            difference
      first set alone, mnist_test   0.649 ± 0.061    -
      first set alone, usps_test    0.421 ± 0.072    -
      second set alone, mnist_test  0.614 ± 0.018    -0.034 ± 0.079
      second set alone, usps_test   0.667 ± 0.044    +0.246 ± 0.057
      both sets merged, mnist_test  0.693 ± 0.023    +0.044 ± 0.079
      both sets merged, usps_test   0.618 ± 0.014    +0.197 ± 0.066

Twice the data is worth little on the embedded digits, where the first set alone already does nearly as well. MNIST
and USPS are no longer quite one domain: on each test set the merged stream stands against the set of the same origin,
a small gain for MNIST and a small loss for USPS. Nothing else was tried.
"""

from __future__ import annotations

import ml_collections
from cells import MOVED, arguments, arm, digits_test, experiment, shape, term


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`examples`: the size of each of the two sets; `steps`: updates of each arm."""
    args = arguments(arg, examples=80, steps=200)
    if args.data == "embedded":
        kinds = [dict(kind="tfds", name="digits")] * 2
        rows = [f"train[:{args.examples}]", f"train[{args.examples}:{2 * args.examples}]"]
        tests = dict(test="plain")
    else:
        kinds = [dict(kind="idx"), dict(kind="usps")]
        rows = [f"train[:{args.examples}]"] * 2
        tests = dict(mnist_test="plain", usps_test="usps")
    parts = [dict(kind, split=split) for kind, split in zip(kinds, rows, strict=True)]

    def merged(*chosen: dict) -> dict:
        return dict(data=dict(kind="merge", parts=chosen), domain="plain", batch_size=32, augment=MOVED, **shape(args))

    streams = dict(first=merged(parts[0]), second=merged(parts[1]), both=merged(*parts),
                   **{name: digits_test(args, domain) for name, domain in tests.items()})
    rows_of_report = dict(first="first set alone", second="second set alone", both="both sets merged")
    stages = {name: arm(method, dict(digits=term("digits", name)), dict.fromkeys(tests, "digits"), args.steps)
              for name, method in rows_of_report.items()}
    return experiment("dataset_merging", args, ("digits",), streams, stages, tuple(tests))
