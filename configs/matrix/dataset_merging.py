"""DOC"""

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
