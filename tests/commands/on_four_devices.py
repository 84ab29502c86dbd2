"""Run by test_commands.py in a process with four devices: WORKDIR IMAGES OUT; scores, answers and features of a run."""

import sys

import jax
from tiny_experiment import command

workdir, images, out = sys.argv[1:]
assert jax.device_count() == 4
for name, flags in {"evaluate": ("--json", f"{out}/scores.json"),
                    "predict": ("--input", images, "--batch_size", 16, "--out", f"{out}/answers.csv"),
                    "embed": ("--stream", "test", "--out", f"{out}/features")}.items():
    done = command(name, "--workdir", workdir, *flags)
    assert done.returncode == 0, done.stderr
