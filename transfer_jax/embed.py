"""Features to disk: `python -m transfer_jax.embed --config FILE.py[:args] | --workdir DIR [--tap T ...] [--out DIR]`.

One pass over each stream without augmentation. What is in the cache already, under the hash of weights, preprocessing,
data, taps and pooling, is not computed again, and a stopped pass goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    add_model(options)
    add_taps(options)
    options.add_argument("--stream", nargs="+", default=[], help="streams of the experiment (default: all)")
    options.add_argument("--out", help="a folder for OUT/<stream> (default: the cache)")
    given, overrides = command_line.parse(options, arguments)
    from transfer_jax.experiment.probing import embed

    embed(source_of(given, overrides), given.stream, given.tap, given.pool, Path(given.out) if given.out else None)
    return 0


def add_model(options: argparse.ArgumentParser) -> None:
    """Options that name a model."""
    options.add_argument("--config", help="FILE.py, optionally with :key=value,...: its model before any training")
    options.add_argument("--workdir", help="folder of a run: its trained model")
    options.add_argument("--stage", help="the result of this stage of the run (default: the exported one)")
    options.add_argument("--best", action="store_true", help="the stage's best parameters instead of its last")
    options.add_argument("--model_seed", type=int, help="the model and splits of this seed (default: the first)")


def add_taps(options: argparse.ArgumentParser) -> None:
    """Options that choose features."""
    options.add_argument("--tap", nargs="+", default=["pooled"],
                         help="taps, side by side (python -m transfer_jax.models lists them); heads/NAME for outputs")
    options.add_argument("--pool", default="mean", help="how maps and tokens become vectors: mean, max, cls or none")


def source_of(given: argparse.Namespace, overrides: Sequence[str]):  # noqa: ANN201 - the type is a heavy import
    """The `Source` that the options name."""
    from transfer_jax.experiment.probing import Source

    return Source(given.config, overrides, Path(given.workdir) if given.workdir else None, given.stage,
                  "best" if given.best else "last", given.model_seed)


if __name__ == "__main__":
    command_line.run(main)
