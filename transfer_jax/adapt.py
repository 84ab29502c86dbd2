"""Domain adaptation on features: `python -m transfer_jax.adapt --source A --target B | --pairs DIR`.

A and B are .npz or .mat files (arrays x, features, fts or feas, and y, labels or label), or folders that `embed` has
made; DIR holds one for each domain, and every ordered pair is done. Labels of the target only score, unless --labelled
gives some of each class to the methods (then the others score); a target without labels gets no score.

Methods move features (none pca sa gfk coral tca jda bda ot ot-classes augmentation), weight source examples (kliep kmm
ulsif rulsif domain-classifier; with logistic or svm) or boost (tradaboost; needs --labelled). `--set OPTION=VALUE` sets
an option of all methods that have it, `--set METHOD.OPTION=VALUE` that of one, as in `--set dimensions=100`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line
from transfer_jax.core.errors import UserError


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--source", help="file or folder of the labelled domain")
    options.add_argument("--target", help="file or folder of the other domain")
    options.add_argument("--pairs", help="folder with a file (or folder) of features for each domain")
    options.add_argument("--methods", default="all", help="names separated by commas, or all that the classifier and "
                         "the labels allow")
    options.add_argument("--classifier", default="nn1", help="nn1 (nearest neighbour), logistic or svm")
    options.add_argument("--C", type=float, default=1.0, dest="c", help="of logistic and svm, as in scikit-learn")
    options.add_argument("--normalise", default="zscore-per-domain", help="steps separated by commas: row-sum unit log "
                         "zscore zscore-source zscore-per-domain none")
    options.add_argument("--set", nargs="+", default=[], help="options of methods: OPTION=VALUE or METHOD.OPTION=VALUE")
    options.add_argument("--labelled", type=int, default=0, help="target examples of each class that methods may know")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--output", help="folder for the table as JSON")
    options.add_argument("--quiet", action="store_true", help="no progress")
    given, overrides = command_line.parse(options, arguments)
    if overrides:
        raise UserError("adapt takes no --config.KEY=VALUE; set options of methods with --set")
    if (given.pairs is None) == (given.source is None and given.target is None) or (
            given.pairs is None and None in (given.source, given.target)):
        raise UserError("give either --source and --target, or --pairs with a folder of domains")
    if given.labelled < 0:
        raise UserError(f"--labelled {given.labelled}: give 0 or more")
    from transfer_jax.experiment import adapting, domain_files

    request = adapting.AdaptRequest(tuple(given.methods.split(",")), given.classifier, given.c,
                                    tuple(given.normalise.split(",")), tuple(given.set), given.labelled, given.seed)
    if given.pairs is None:
        pairs = [(domain_files.read_domain(given.source), domain_files.read_domain(given.target))]
    else:
        domains = domain_files.read_folder(given.pairs)
        pairs = [(source, target) for source in domains for target in domains if source is not target]
    rows = adapting.adapt(pairs, request, given.quiet)
    adapting.show(rows, f"adapted from {given.source} to {given.target}" if given.pairs is None else
                  f"accuracy % on the target, domains of {given.pairs}")
    if given.output is not None:
        print(f"written: {adapting.write(rows, request, Path(given.output))}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
