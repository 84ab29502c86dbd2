"""DOC"""

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
                           args.steps, joint_forward=True)
    return experiment("weight_sharing", args, ("digits",), streams, stages, ("photo_test", "plain_test"))
