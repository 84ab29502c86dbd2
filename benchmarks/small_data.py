"""Steps per second of the quickstart's fine-tuning stage, against the same network and batch in PyTorch (CPU build).

    PYTHONPATH=. python benchmarks/small_data.py [--rounds 7] [--steps 100]

Both are timed in one run, turn by turn, and the ratio of the medians is printed: five seeds trained together and one
seed alone on our side, one seed after the other in PyTorch (eager, and eager in channels-last layout). A step is
a step of one seed: draw 32 examples, forward, backward, Adam. Needs `torch` beside the requirements.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from transfer_jax.core.config import load_config
from transfer_jax.core.spec import build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import fresh_variables, prepare
from transfer_jax.training.chunk import compile_chunk
from transfer_jax.training.progress import print_table

STAGE = "finetune_10"
ROOT = Path(__file__).resolve().parent.parent


def ours(seeds: int) -> tuple[Callable[[int], None], int]:
    """A function that runs n steps of the stage, and how many seeds each step trains."""
    spec = build(ExperimentSpec, load_config(str(ROOT / f"configs/quickstart.py:seeds={seeds}")))
    assembly = Assembly(spec)
    ready = prepare(assembly, STAGE)
    state, constants = ready.start(*fresh_variables(assembly), 2, assembly.members)
    feeds = {name: assembly.feed(name) for name in ready.program.streams}
    chunk = compile_chunk([(ready.program, ready.program.partition.active(0))], assembly.members)
    holder = {"state": state}

    def run(steps: int) -> None:
        holder["state"], = chunk((holder["state"],), (constants,), (feeds,), (ready.seeds(spec.seeds),), np.int32([0]),
                                 np.int32([steps]))
        jax.block_until_ready(holder["state"])

    return run, seeds


def torchs(channels_last: bool) -> Callable[[int], None]:
    """The same step in PyTorch: the same shapes, padding, optimizer and draw of batches from memory."""
    import torch
    from torch import nn
    from torch.nn import functional

    spec = build(ExperimentSpec, load_config(str(ROOT / "configs/quickstart.py:seeds=1")))
    assembly = Assembly(spec)
    ready = prepare(assembly, STAGE)
    stream = next(iter(ready.program.streams.values()))
    images = torch.tensor(np.asarray(stream.tables["image"])).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    labels = torch.tensor(np.asarray(stream.tables["label"])).long()
    widths = assembly.model.backbones["backbone"].widths

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inputs = (images.shape[1], *widths)
            self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1 if i == 0 else 0)
                                              for i, (a, b) in enumerate(zip(inputs, widths, strict=False)))
            self.head = nn.Linear(widths[-1], 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for number, convolution in enumerate(self.convolutions):
                x = functional.pad(x, (0, 1, 0, 1)) if number else x  # "SAME" with stride 2
                x = functional.relu(convolution(x))
            return self.head(x.mean((2, 3)))

    network = Network()
    if channels_last:
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    expected = sum(leaf.size for path, leaf in ready.shapes.items()
                   if ready.program.partition.group_of[path] != "unused")
    if sum(p.numel() for p in network.parameters()) != expected:
        raise SystemExit(f"the two networks differ: {expected} parameters here")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    batch = stream.spec.batch_size

    def run(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randint(len(images), (batch,))
            loss = functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--steps", type=int, default=100)
    given = options.parse_args()
    together, alone = ours(5), ours(1)
    sides = {"transfer_jax, 5 seeds together": together, "transfer_jax, 1 seed": alone,
             "PyTorch eager": (torchs(False), 1), "PyTorch eager, channels last": (torchs(True), 1)}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run, _ in [*sides.values(), *sides.values()]:
        run(given.steps)  # compile, and once more with the state where the first call left it
    for _ in range(given.rounds):
        for name, (run, seeds) in sides.items():
            began = time.perf_counter()
            run(given.steps)
            rates[name].append(seeds * given.steps / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best_torch = max(value for name, value in medians.items() if "PyTorch" in name)
    rows = [(name, f"{medians[name]:.0f}", f"{min(values):.0f}", f"{max(values):.0f}",
             f"{medians[name] / best_torch:.2f}") for name, values in rates.items()]
    print_table(("side", "steps of one seed per second", "min", "max", "ratio to the better PyTorch"), rows,
                Console(width=120), f"quickstart, stage {STAGE}, batch 32, medians of {given.rounds} rounds")


if __name__ == "__main__":
    main()
