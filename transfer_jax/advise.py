"""Which recipe for these data, and why: `python -m transfer_jax.advise --config configs/X.py[:key=value,...]`.

Measures the size of the training stream and, with linear probes at several depths of the pretrained model, how like the
source it is; names the situation and a recipe, its reasons, and the command to run it. --verify trains the likeliest
recipes briefly on four fifths of the training examples and compares them on the rest; test data have no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--config", required=True, help="FILE.py, optionally with :key=value,... for its get_config")
    options.add_argument("--source", help="a stream of the config with data of the source, for a distance between them")
    options.add_argument("--small", type=int, default=100, help="examples a class below which data are few")
    options.add_argument("--verify", action="store_true", help="train the likeliest recipes briefly")
    options.add_argument("--share", type=float, default=0.3, help="with --verify: share of the config's length")
    options.add_argument("--workdir", help="with --verify: folder of the runs; the same command goes on there")
    given, overrides = command_line.parse(options, arguments)
    from transfer_jax.experiment.advice_report import give_advice

    give_advice(given.config, overrides, source=given.source, small=given.small, verified=given.verify,
                share=given.share, workdir=Path(given.workdir) if given.workdir else None)
    return 0


if __name__ == "__main__":
    command_line.run(main)
