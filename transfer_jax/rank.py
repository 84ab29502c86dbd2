"""Which source model: `python -m transfer_jax.rank --weights A B C ... --data DIR [--finetune --workdir DIR]`.

Every source is opened by configs/finetune.py, or by the config that --config names, so --data and each of --weights are
what its `data` and `weights` are; further arguments follow the weights ('A,backbone=resnet18,source_classes=1000') or
stand in --args for all. Shown together: transferability scores of the training examples, and a linear probe and nearest
neighbours answered on the evaluation examples. With --finetune every source is fine-tuned as well, in WORKDIR/<source>,
and each score gets its weighted Kendall's tau with the fine-tuned accuracies. Where the seeds of the config draw
examples of their own, scores are means over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line
from transfer_jax.core.errors import UserError


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--weights", required=True, nargs="+", help="sources, each with ',key=value' if need be")
    options.add_argument("--data", required=True, help="folder of class folders, table, or tfds:NAME")
    options.add_argument("--args", default="", help="key=value,... of the config for all sources")
    options.add_argument("--config", help="FILE.py with the arguments data, weights and recipe and the streams train "
                         "and evaluation (default: configs/finetune.py)")
    options.add_argument("--tap", default="pooled", help="the features to score")
    options.add_argument("--finetune", action="store_true", help="fine-tune every source too, for the truth")
    options.add_argument("--workdir", help="folder of the fine-tuned runs")
    options.add_argument("--out", help="JSON file for the table")
    given, overrides = command_line.parse(options, arguments)
    if overrides:
        raise UserError("rank takes no --config.KEY=VALUE; give arguments of the config with --args")
    if given.finetune != bool(given.workdir):
        raise UserError("--finetune and --workdir belong together: runs need a folder, and a folder is for runs")
    out = command_line.output(given.out)
    from transfer_jax.experiment import ranking

    found = ranking.rank(given.weights, given.data, given.args, given.tap,
                         Path(given.workdir) if given.workdir else None,
                         Path(given.config) if given.config else ranking.CONFIG)
    ranking.show(found, f"sources for {given.data}, the best by mean rank first", out)
    return 0


if __name__ == "__main__":
    command_line.run(main)
