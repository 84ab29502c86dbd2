"""Classifiers on features: `python -m transfer_jax.probe --config FILE.py[:args] | --workdir DIR | --features DIR`.

Logistic regression, ridge, linear discriminant analysis, support vector machines, nearest neighbours, nearest class
mean and few-shot episodes in one table with 95 % intervals; settings are chosen on validation, never on test.

With --config or --workdir, --train, --validation and --test name streams (features come from the cache, or are made);
with --features they are folders that `embed` has made, --features being the one to train on. Without a test part every
example is answered once, by cross-validation. Where no stream is named, the one called train (or trained on first) is
probed, and the one that the last stage evaluates is the test.
"""

from __future__ import annotations

from collections.abc import Sequence

from transfer_jax import command_line
from transfer_jax.core.errors import UserError


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    command_line.add_model(options)
    command_line.add_taps(options)
    options.add_argument("--features", help="folder of features to train on, in place of a model")
    for part in ("train", "validation", "test"):
        options.add_argument(f"--{part}", help=f"stream (or folder of features) for {part}")
    options.add_argument("--method", nargs="+", default=[], help="logistic ridge lda linear_svm rbf_svm knn "
                         "nearest_mean few_shot (default: all; support vector machines up to 5000 examples)")
    options.add_argument("--shots", nargs="+", type=int, default=[1, 5, 10])
    options.add_argument("--few_shot", nargs="+", default=[], help="nearest_mean knn ridge logistic, what learns from "
                         "them (default: all; the last two up to 1000 examples an episode)")
    options.add_argument("--episodes", type=int, default=100)
    options.add_argument("--folds", type=int, default=5)
    options.add_argument("--seed", type=int, default=0, help="of folds and episodes")
    options.add_argument("--out", help="JSON file for the table")
    given, overrides = command_line.parse(options, arguments)
    out = command_line.output(given.out)
    from transfer_jax.experiment import probing

    request = probing.ProbeRequest(tuple(given.method), tuple(given.few_shot), tuple(given.shots), given.episodes,
                                   given.folds, given.seed)
    if given.features is None:
        rows = probing.probe_model(command_line.source_of(given, overrides), given.train, given.test, given.validation,
                                   given.tap, given.pool, request)
    else:
        if given.config or given.workdir or given.train or given.tap != ["pooled"] or given.pool != "mean":
            raise UserError("--features are features already; leave --config, --workdir, --train, --tap and --pool out")
        rows = probing.probe({part: probing.Features(folder) for part, folder in
                              (("train", given.features), ("validation", given.validation), ("test", given.test))
                              if folder}, request)
    probing.show(rows, given.features or given.config or given.workdir, out)
    return 0


if __name__ == "__main__":
    command_line.run(main)
