"""Which recipe for these data, and why: `python -m transfer_jax.advise --config configs/X.py[:key=value,...]`, or for a
network of one's own `--run DIR@stage --stream NAME`, which asks that of every seed and writes DIR/advice/NAME.json.

Measures the size of the training stream and, with linear probes at several depths of the pretrained model, how like the
source it is; names the situation and a recipe, its reasons, and the command to run it. --verify trains the likeliest
recipes briefly on four fifths of the training examples and compares them on the rest; test data have no say. With --run
it trains them for --steps, below DIR/advice/verify/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line
from transfer_jax.core.errors import UserError


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--config", help="FILE.py, optionally with :key=value,... for its get_config")
    options.add_argument("--run", help="in place of --config: DIR[@stage], a run whose network is to be transferred")
    options.add_argument("--stream", help="with --run: the stream of the run to train on")
    options.add_argument("--source", help="a stream of the config with data of the source, for a distance between them")
    options.add_argument("--small", type=int, default=50, help="examples a class below which data are few")
    options.add_argument("--verify", action="store_true", help="train the likeliest recipes briefly")
    options.add_argument("--share", type=float, help="with --config and --verify: share of the config's length (0.3)")
    options.add_argument("--steps", type=int, help="with --run and --verify: for how many steps each is trained")
    options.add_argument("--workdir", help="with --config and --verify: folder of the runs, where the command goes on")
    given, overrides = command_line.parse(options, arguments)
    if (given.config is None) == (given.run is None):
        raise UserError("give either --config (a pretrained model and its data) or --run (a network of your own)")
    if (given.run is None) != (given.stream is None):
        raise UserError("--run and --stream belong together: a network, and the data that it is to learn")
    if given.run is not None and (given.workdir or given.share is not None or overrides):
        raise UserError("--workdir, --share and --config.KEY=VALUE are for --config; a run is as it was trained")
    if given.verify != (given.steps is not None) and (given.run is not None or given.steps is not None):
        raise UserError("--verify with --run needs --steps N, for how long each recipe is trained, and the other way "
                        "round")
    from transfer_jax.experiment import advice_report

    if given.run is not None:
        folder, _, stage = given.run.partition("@")
        advice_report.advise_on_run(Path(folder), stage or None, given.stream, given.source, given.small,
                                    given.steps or 0)
        return 0
    advice_report.give_advice(given.config, overrides, source=given.source, small=given.small, verified=given.verify,
                              share=0.3 if given.share is None else given.share,
                              workdir=Path(given.workdir) if given.workdir else None)
    return 0


if __name__ == "__main__":
    command_line.run(main)
