"""What combining the losses, or the gradients, of several tasks costs beside their plain sum.

    PYTHONPATH=. python benchmarks/multitask.py [--tasks 2 4 8] [--rounds 7] [--steps 10] [--batch 32]
                                                [--network resnet8|small_cnn] [--only KIND ...]

All stages share one network with a linear head for every task, data, batches and optimizer, and are timed turn by turn
in one run. A combination of losses is compared with the plain sum, FAMO with one more forward pass; a rule for
gradients with the plain sum and T - 1 further backward passes of the trunk, Auto-Lambda with one more pass forward and
backward. Passes of the trunk are timed beside the steps; a backward pass is by how much a pass forward and backward is
longer than one forward. Printed are medians, and quartiles of the ratios of paired rounds; and the memory that the
compiler plans for a step beside its arguments, as a ratio to the plain sum's. Data are random numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from transfer_jax.core.compilation import compiled
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import added_parameters, fresh_variables, names_of_metrics, prepare
from transfer_jax.objectives import COMBINATIONS, GRADIENT_RULES
from transfer_jax.training.chunk import compile_chunk
from transfer_jax.training.progress import print_table

NETWORKS = {"resnet8": (dict(kind="cifar_resnet8"), 32), "resnet20": (dict(kind="cifar_resnet20"), 32),
            "small_cnn": (dict(kind="small_cnn", widths=(16, 32, 64, 64), norm="batch"), 40)}
PLAIN, FORWARD, BACKWARD = "fixed", "trunk forward", "trunk forward and backward"
FURTHER = {"famo": FORWARD, "auto_lambda": BACKWARD}  # a pass of its own, beside those of the other kinds
EXAMPLES = 512
Side = tuple[Callable[[int], None], float]  # runs n steps; megabytes


def experiment(folder: Path, network: str, tasks: int, batch: int, kinds: Sequence[str]) -> ExperimentSpec:
    """A stage for each kind of combination."""
    backbone, size = NETWORKS[network]
    rng = np.random.default_rng(0)
    names = [f"task{number}" for number in range(tasks)]
    np.savez(folder / "data.npz", image=rng.integers(0, 256, (EXAMPLES, size, size, 3), np.uint8),
             label=rng.integers(0, 10, EXAMPLES))
    terms = {name: dict(kind="task", task=name, stream="train") for name in names}
    stages = {kind: dict(steps=10**6, optimizer=dict(kind="sgd", momentum=0.9), lr=1e-4,
                         objective=dict(terms=terms, combine=dict(kind=kind))) for kind in kinds}
    return build(ExperimentSpec, dict(
        name="multitask", stages=stages, model=dict(backbones=dict(backbone=backbone),
                                                    heads={name: dict(kind="linear") for name in names}),
        streams=dict(train=dict(data=dict(kind="arrays", path=str(folder / "data.npz")), batch_size=batch)),
        tasks={name: dict(kind="classification", head=name) for name in names}))


def stage(assembly: Assembly, name: str) -> Side:
    """A stage's steps."""
    ready = prepare(assembly, name)
    params, stats = fresh_variables(assembly)
    params = {**params, **added_parameters(ready, params, (0,))}
    feeds = {stream: assembly.feed(stream) for stream in ready.program.streams}
    seeds = ready.seeds((0,))
    names = names_of_metrics(ready, (params, stats), {}, feeds, seeds)
    state, constants = ready.start(params, stats, len(names), 1)
    first = np.int32([0])
    chunk = compile_chunk([(ready.program, ready.program.partition.active(0))], 1).lower(
        (state,), (constants,), (feeds,), (seeds,), first, first).compile()
    holder = {"state": state}

    def run(steps: int) -> None:
        holder["state"], = chunk((holder["state"],), (constants,), (feeds,), (seeds,), first, np.int32([steps]))
        jax.block_until_ready(holder["state"])

    return run, chunk.memory_analysis().temp_size_in_bytes / 2**20


def trunk(assembly: Assembly, batch: int, backward: bool) -> Side:
    """The trunk alone on a batch, as often as asked."""
    model, (params, stats) = assembly.model, fresh_variables(assembly)
    leaves = {path: leaf[0] for path, leaf in params.items() if path.startswith("backbone/")}
    stats = jax.tree.map(lambda leaf: leaf[0], stats)
    stream = assembly.stream("train")
    images = jnp.asarray(stream.tables["image"][:batch], jnp.float32) / 255

    def pooled(leaves: dict[str, jax.Array]) -> jax.Array:
        taps, _ = model.taps({"params": unflatten(leaves), "batch_stats": stats}, {"backbone": images}, train=True)
        return jnp.sum(taps["pooled"] ** 2)

    def once(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
        # The next pass depends on this one, so that the compiler leaves none out.
        if backward:
            return jax.tree.map(lambda leaf, slope: leaf - 1e-9 * slope, leaves, jax.grad(pooled)(leaves))
        value = 1e-9 * pooled(leaves)
        return {path: leaf - value for path, leaf in leaves.items()}

    many = compiled(lambda leaves, steps: jax.lax.fori_loop(0, steps, lambda _, now: once(now), leaves))
    return lambda steps: jax.block_until_ready(many(leaves, jnp.int32(steps))), 0.0


def measured(sides: dict[str, Side], rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Milliseconds a step of every side, round by round."""
    for run, _ in [*sides.values(), *sides.values()]:
        run(steps)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (run, _) in sides.items():
            began = time.perf_counter()
            run(steps)
            times[name].append(1e3 * (time.perf_counter() - began) / steps)
    return {name: np.asarray(found) for name, found in times.items()}


def rows(sides: dict[str, Side], times: dict[str, np.ndarray], tasks: int) -> list[tuple[Any, ...]]:
    """A row a kind: ms, the ratio to the plain sum, the ratio to what is allowed, memory to the plain sum's."""
    def quartiles(values: np.ndarray) -> str:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        return f"{middle:.2f} ({low:.2f}-{high:.2f})"

    further = (tasks - 1) * (times[BACKWARD] - times[FORWARD])
    found = []
    for name, values in times.items():
        if name in (FORWARD, BACKWARD):
            found.append((name, f"{statistics.median(values):.2f}", "", "", ""))
            continue
        passes = times[PLAIN] + (further if name in GRADIENT_RULES else 0.0) + times.get(FURTHER.get(name), 0.0)
        found.append((name, f"{statistics.median(values):.2f}", quartiles(values / times[PLAIN]),
                      quartiles(values / passes), f"{sides[name][1] / sides[PLAIN][1]:.2f}"))
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--network", choices=NETWORKS, default="resnet8")
    options.add_argument("--only", nargs="+", default=[*COMBINATIONS, *GRADIENT_RULES])
    given = options.parse_args()
    kinds = list(dict.fromkeys([PLAIN, *given.only]))
    for tasks in given.tasks:
        with tempfile.TemporaryDirectory() as folder:
            assembly = Assembly(experiment(Path(folder), given.network, tasks, given.batch, kinds))
            sides = {FORWARD: trunk(assembly, given.batch, False), BACKWARD: trunk(assembly, given.batch, True),
                     **{kind: stage(assembly, kind) for kind in kinds}}
            times = measured(sides, given.rounds, given.steps)
        print_table(("step", "ms", "beside the sum", "beside the passes", "memory"), rows(sides, times, tasks),
                    Console(), f"{given.network}, {tasks} tasks, batch {given.batch}, {given.rounds} rounds")


if __name__ == "__main__":
    main()
