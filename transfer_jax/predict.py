"""Answers for images: `python -m transfer_jax.predict --workdir DIR --input PATH... [--out FILE.csv|FILE.json]`.

PATH is an image, a folder (searched through) or a glob. Every image gets its class and all probabilities, with exactly
the preprocessing of training; a segmentation task writes a mask a picture, a detection task a row a box. An
image that cannot be read is an error, or with --skip_bad a line on stderr.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--workdir", required=True, help="folder of the run, or a model/ folder")
    options.add_argument("--input", required=True, nargs="+", help="images, folders or globs")
    options.add_argument("--out", help="CSV or JSON file (default: CSV on stdout); a folder for masks")
    options.add_argument("--task", help="the task to answer, where the model has several")
    options.add_argument("--stage", help="use the result of this stage instead of model/")
    options.add_argument("--seed", type=int, help="use the result of this seed (default: the first)")
    options.add_argument("--batch_size", type=int, default=64)
    options.add_argument("--skip_bad", action="store_true", help="name unreadable images and go on")
    given, _ = command_line.parse(options, arguments)
    from transfer_jax.experiment.prediction import predict_paths

    predict_paths(Path(given.workdir), given.input, command_line.output(given.out, folder=True), task=given.task,
                  stage=given.stage, seed=given.seed, batch_size=given.batch_size, skip_bad=given.skip_bad)
    return 0


if __name__ == "__main__":
    command_line.run(main)
