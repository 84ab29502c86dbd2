"""What a step of domain adaptation costs beside the two forward-backward passes that it needs, one for each domain.

    PYTHONPATH=. python benchmarks/adaptation.py [--rounds 9] [--steps 30] [--batch 64] [--network lenet|resnet8]

The two passes are a stage of the same engine that learns the labels of both domains, with the same network, batches
and optimizer. DANN, CDAN and DAN learn the source's labels and align the target. All are timed turn by turn in one
run; printed are medians, and quartiles of the ratios of paired rounds. Data are random numbers: only time counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from transfer_jax.core.spec import build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import fresh_variables, names_of_metrics, prepare
from transfer_jax.recipes import Setting, expand, grafted
from transfer_jax.training.chunk import compile_chunk
from transfer_jax.training.progress import print_table

NETWORKS = {"lenet": (dict(kind="lenet", dense=(500, 256)), 28, 1), "resnet8": (dict(kind="cifar_resnet8"), 32, 3)}
RECIPES = {"DANN": "dann", "CDAN": "cdan", "CDAN+E": "cdan(entropy=True)", "DAN": "dan"}
PASSES = "two passes"


def experiment(folder: Path, network: str, batch: int) -> ExperimentSpec:
    """A stage for each recipe, and one that learns both domains' labels."""
    backbone, size, channels = NETWORKS[network]
    rng = np.random.default_rng(0)
    for domain in ("source", "target"):
        np.savez(folder / f"{domain}.npz", image=rng.integers(0, 256, (2048, size, size, channels), np.uint8),
                 label=rng.integers(0, 10, 2048))
    streams = {name: dict(data=dict(kind="arrays", path=str(folder / f"{name.partition('_')[0]}.npz")), domain=name,
                          batch_size=batch, labelled=name != "target")
               for name in ("source", "target", "target_labelled")}
    plainly = dict(optimizer=dict(kind="sgd", momentum=0.9), schedule=dict(kind="constant"))
    told = Setting(backbone, name="task", stream="source", target="target", evaluate=(), classes=10, steps=10 ** 6,
                   backbone_lr=1.0, stage=plainly)
    stages: dict = {}
    heads: dict = {}
    for name, text in RECIPES.items():
        plan = expand(text, told)
        stages |= grafted(plan["stages"], name)
        heads |= plan["model"]["heads"]
    both = {stream: dict(kind="task", task="task", stream=stream) for stream in ("source", "target_labelled")}
    stages[PASSES] = {**stages["DAN"], "objective": dict(terms=both)}
    return build(ExperimentSpec, dict(name="adaptation", streams=streams, stages=stages, tasks=plan["tasks"],
                                      model=dict(backbones=dict(backbone=backbone), heads=heads)))


def runner(assembly: Assembly, stage: str) -> Callable[[int], None]:
    """n steps of the stage."""
    ready = prepare(assembly, stage)
    params, stats = fresh_variables(assembly)
    feeds = {name: assembly.feed(name) for name in ready.program.streams}
    seeds = ready.seeds((0,))
    names = names_of_metrics(ready, (params, stats), {}, feeds, seeds)
    state, constants = ready.start(params, stats, len(names), 1)
    chunk = compile_chunk([(ready.program, ready.program.partition.active(0))], 1)
    holder = {"state": state}

    def run(steps: int) -> None:
        holder["state"], = chunk((holder["state"],), (constants,), (feeds,), (seeds,), np.int32([0]), np.int32([steps]))
        jax.block_until_ready(holder["state"])

    return run


def measured(sides: dict[str, Callable[[int], None]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds a step of every side, round by round."""
    for run in [*sides.values(), *sides.values()]:
        run(steps)  # compile, and once more with the state where the first call left it
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run(steps)
            times[name].append(1e3 * (time.perf_counter() - began) / steps)
    return times


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--network", choices=NETWORKS, default="lenet")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        assembly = Assembly(experiment(Path(folder), given.network, given.batch))
        sides = {name: runner(assembly, name) for name in assembly.spec.stages}
        times = measured(sides, given.rounds, given.steps)
    rows = []
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times[PASSES], strict=True)]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows.append((name, f"{statistics.median(values):.2f}", f"{middle:.2f} ({low:.2f}-{high:.2f})"))
    print_table(("step", "ms", f"beside {PASSES}"), rows, Console(),
                f"{given.network}, batch {given.batch} of each domain, {given.rounds} rounds")


if __name__ == "__main__":
    main()
