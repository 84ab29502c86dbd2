"""What training independent models in one process costs beside training them one after the other.

    PYTHONPATH=. python benchmarks/parallel.py [--cases same different seeds] [--number 4] [--rounds 7] [--steps 20]
                                               [--batch 32] [--network lenet|small_cnn|resnet8]

    same        as many stages as --number, of one network each, alike but for their data's order
    different   two stages, a LeNet and a ResNet-8
    seeds       as many seeds of one stage as --number, stacked

Stages of a group are one program for each, dispatched at once ('apart'), or one program of all ('joined'); seeds are
mapped one by one ('map') or stacked ('vmap') in one program. All are timed turn by turn in one run, as many steps of
every model; printed are medians, quartiles of the ratios of paired rounds to one after the other, the seconds that
compiling took, and what a device holds by the engine's plan (parameters, optimizer, data, activations), where one after
the other holds the largest model alone. Data are random numbers: only time counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from transfer_jax.core.spec import build
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage_run import StageRun
from transfer_jax.training.chunk import compile_chunk
from transfer_jax.training.lane import Lane
from transfer_jax.training.memory import make_plan
from transfer_jax.training.progress import Progress, print_table
from transfer_jax.training.writers import MetricWriter

NETWORKS = {"lenet": dict(kind="lenet"), "small_cnn": dict(kind="small_cnn", widths=(16, 32, 64), norm="batch"),
            "resnet8": dict(kind="cifar_resnet8")}
SIZE, EXAMPLES, CLASSES = 32, 512, 10
IN_TURN = "one after the other"


def experiment(folder: Path, networks: Sequence[str], batch: int, **settings: Any) -> ExperimentSpec:
    """A stage for each network, with a backbone, a head and streams of its own."""
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", image=rng.integers(0, 256, (EXAMPLES, SIZE, SIZE, 3), np.uint8),
             label=rng.integers(0, CLASSES, EXAMPLES))
    names = [f"model{number}" for number in range(len(networks))]
    data = dict(kind="arrays", path=str(folder / "data.npz"))
    terms = {name: {name: dict(kind="task", task=name, stream=name)} for name in names}
    return build(ExperimentSpec, dict(
        name="parallel", compilation_cache=None, checkpoint_every=0,
        model=dict(backbones={name: NETWORKS[kind] for name, kind in zip(names, networks, strict=True)},
                   heads={name: dict(kind="linear", tap=f"{name}/pooled") for name in names}),
        streams={name: dict(data=data, batch_size=batch, inputs={name: "image"}) for name in names},
        tasks={name: dict(kind="classification", head=name) for name in names},
        stages={name: dict(init="fresh", steps=10**6, optimizer=dict(kind="sgd", momentum=0.9), lr=1e-4,
                           objective=dict(terms=terms[name])) for name in names}, **settings))


def lanes_of(spec: ExperimentSpec, folder: Path) -> list[Lane]:
    """The stages as the engine has them before the first step."""
    runner = Runner(spec, folder, quiet=True)
    with MetricWriter(folder, enabled=False) as writer, Progress(1, enabled=False) as progress:
        return [StageRun(runner, name, None, writer, progress).enter(lambda *_: None) for name in spec.stages]


class Side:
    """Models in training: those of a bundle by one program, bundles at once or one after the other."""

    def __init__(self, bundles: Sequence[Sequence[Lane]], at_once: bool) -> None:
        self.bundles, self.at_once = bundles, at_once
        began = time.perf_counter()
        self.programs = [compile_chunk([(lane.program, lane.active) for lane in lanes], len(lanes[0].state.bad),
                                       tuple(lane.shardings for lane in lanes)).lower(*_given(lanes, 1)).compile()
                         for lanes in bundles]
        self.seconds = time.perf_counter() - began

    def run(self, steps: int) -> None:
        """So many steps of every model."""
        for lanes, program in zip(self.bundles, self.programs, strict=True):
            for lane, state in zip(lanes, program(*_given(lanes, steps)), strict=True):
                lane.state, lane.step = state, lane.step + steps
            if not self.at_once:
                jax.block_until_ready([lane.state for lane in lanes])
        jax.block_until_ready([lane.state for lanes in self.bundles for lane in lanes])

    def memory(self) -> int:
        """Bytes on a device."""
        return (sum if self.at_once else max)(
            make_plan("", {}, [lane.state for lane in lanes], [lane.constants for lane in lanes],
                      [lane.data.take(0) for lane in lanes], [program], None).total
            for lanes, program in zip(self.bundles, self.programs, strict=True))


def _given(lanes: Sequence[Lane], steps: int) -> tuple[Any, ...]:
    return (tuple(lane.state for lane in lanes), tuple(lane.constants for lane in lanes),
            tuple(lane.data.take(0) for lane in lanes), tuple(lane.seeds for lane in lanes),
            np.int32([lane.step for lane in lanes]), np.full(len(lanes), steps, np.int32))


def sides(case: str, folder: Path, given: argparse.Namespace) -> dict[str, Side]:
    """Ways to train the models of a case."""
    def made(networks: Sequence[str], **settings: Any) -> list[Lane]:
        own = Path(tempfile.mkdtemp(dir=folder))
        return lanes_of(experiment(own, networks, given.batch, **settings), own / "run")

    if case == "seeds":
        alone = [made([given.network], seeds=(seed,)) for seed in range(given.number)]
        return {IN_TURN: Side(alone, at_once=False), **{
            how: Side([made([given.network], seeds=tuple(range(given.number)), members=how)], at_once=True)
            for how in ("map", "vmap")}}
    networks = [given.network] * given.number if case == "same" else ["lenet", "resnet8"]
    return {IN_TURN: Side([[lane] for lane in made(networks)], at_once=False),
            "apart": Side([[lane] for lane in made(networks)], at_once=True),
            "joined": Side([made(networks)], at_once=True)}


def measured(compared: dict[str, Side], rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Milliseconds for a step of every model, round by round."""
    for side in [*compared.values()] * 2:
        side.run(steps)
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds):
        for name, side in compared.items():
            began = time.perf_counter()
            side.run(steps)
            times[name].append(1e3 * (time.perf_counter() - began) / steps)
    return {name: np.asarray(found) for name, found in times.items()}


def rows(times: dict[str, np.ndarray], seconds: dict[str, float], memory: dict[str, int]) -> list[tuple[str, ...]]:
    """A row a side: ms, ratio of the time, seconds of compiling, MB, ratio of the memory."""
    found = []
    for name, values in times.items():
        low, middle, high = np.quantile(values / times[IN_TURN], [0.25, 0.5, 0.75])
        found.append((name, f"{np.median(values):.1f}", f"{middle:.2f} ({low:.2f}-{high:.2f})", f"{seconds[name]:.1f}",
                      f"{memory[name] / 1e6:.1f}", f"{memory[name] / memory[IN_TURN]:.2f}"))
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = ["same", "different", "seeds"]
    options.add_argument("--cases", nargs="+", choices=cases, default=cases)
    options.add_argument("--number", type=int, default=4)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--network", choices=NETWORKS, default="small_cnn")
    given = options.parse_args()
    for case in given.cases:
        with tempfile.TemporaryDirectory() as folder:
            compared = sides(case, Path(folder), given)
            times = measured(compared, given.rounds, given.steps)
        title = {"same": f"{given.number} stages of {given.network}", "different": "LeNet and ResNet-8",
                 "seeds": f"{given.number} seeds of {given.network}"}[case]
        print_table(("how", "ms", "time beside one after the other", "compiled in s", "MB", "memory beside"),
                    rows(times, {name: side.seconds for name, side in compared.items()},
                         {name: side.memory() for name, side in compared.items()}),
                    Console(), f"{title}, batch {given.batch}, {given.rounds} rounds of {given.steps} steps")


if __name__ == "__main__":
    main()
