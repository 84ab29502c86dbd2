"""Features to disk: `python -m transfer_jax.embed --config FILE.py[:args] | --workdir DIR [--tap T ...] [--out DIR]`.

One pass over each stream without augmentation. What is in the cache already, under the hash of weights, preprocessing,
data, taps and pooling, is not computed again, and a stopped pass goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    command_line.add_model(options)
    command_line.add_taps(options)
    options.add_argument("--stream", nargs="+", default=[], help="streams of the experiment (default: all)")
    options.add_argument("--out", help="a folder for OUT/<stream> (default: the cache)")
    given, overrides = command_line.parse(options, arguments)
    from transfer_jax.experiment.probing import embed

    out = Path(given.out) if given.out else None
    embed(command_line.source_of(given, overrides), given.stream, given.tap, given.pool, out)
    return 0


if __name__ == "__main__":
    command_line.run(main)
