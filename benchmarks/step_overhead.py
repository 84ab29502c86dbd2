"""What the engine costs: its step with all features off, against a jitted step written by hand for the same network.

    PYTHONPATH=. python benchmarks/step_overhead.py [--rounds 15] [--steps 100]

Both train the quickstart's network with Adam on batches gathered on the device, many steps a dispatch, and are timed
turn by turn in one run. The hand-written loop draws its examples with `jax.random.randint` and knows nothing of
streams, terms, groups, metrics or non-finite values. Printed: medians and the ratio of paired rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from transfer_jax.core.config import load_config
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import fresh_variables, prepare
from transfer_jax.training.chunk import compile_chunk
from transfer_jax.training.progress import print_table

CONFIG = Path(__file__).resolve().parent.parent / "configs/quickstart.py:seeds=1"
STAGE = "finetune_10"


def engine(assembly: Assembly) -> Callable[[int], None]:
    """n steps of the stage by the engine."""
    ready = prepare(assembly, STAGE)
    state, constants = ready.start(*fresh_variables(assembly), 2, 1)
    feeds = {name: assembly.feed(name) for name in ready.program.streams}
    chunk = compile_chunk([(ready.program, ready.program.partition.active(0))], 1)
    holder = {"state": state}

    def run(steps: int) -> None:
        holder["state"], = chunk((holder["state"],), (constants,), (feeds,), (ready.seeds((0,)),), np.int32([0]),
                                 np.int32([steps]))
        jax.block_until_ready(holder["state"])

    return run


def by_hand(assembly: Assembly) -> Callable[[int], None]:
    """The same training as one would write it for this network alone."""
    stream = assembly.stream("target_10")
    images, labels = jnp.asarray(stream.tables["image"]), jnp.asarray(stream.tables["label"])
    params = unflatten({path: leaf[0] for path, leaf in fresh_variables(assembly)[0].items()})
    params = {"backbone": params["backbone"], "heads": {"digits": params["heads"]["digits"]}}
    backbone, head = assembly.model.backbones["backbone"], assembly.model.heads["digits"]
    optimizer = optax.adam(1e-3)

    def loss(params, x, y):
        taps = backbone.apply({"params": params["backbone"]}, x, train=True)
        logits = head.apply({"params": params["heads"]["digits"]}, taps)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def chunk(params, state, key, steps):
        def body(i, carry):
            params, state, total = carry
            rows = jax.random.randint(jax.random.fold_in(key, i), (stream.spec.batch_size,), 0, stream.size)
            x = images[rows].astype(jnp.float32) / 127.5 - 1
            value, grads = jax.value_and_grad(loss)(params, x, labels[rows])
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, total + value

        return jax.lax.fori_loop(0, steps, body, (params, state, 0.0))

    holder = [params, optimizer.init(params)]

    def run(steps: int) -> None:
        *holder[:], _ = jax.block_until_ready(chunk(*holder, jax.random.key(0), jnp.int32(steps)))

    return run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--steps", type=int, default=100)
    given = options.parse_args()
    assembly = Assembly(build(ExperimentSpec, load_config(str(CONFIG))))
    sides = {"engine": engine(assembly), "by hand": by_hand(assembly)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in [*sides.values(), *sides.values()]:
        run(given.steps)  # compile, and once more with the state where the first call left it
    for _ in range(given.rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run(given.steps)
            times[name].append(1e3 * (time.perf_counter() - began) / given.steps)
    ratios = [a / b for a, b in zip(times["engine"], times["by hand"], strict=True)]
    print_table(("side", "ms per step", "min", "max"), [
        (name, f"{statistics.median(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}")
        for name, values in times.items()], Console(), f"quickstart, stage {STAGE}, one seed, {given.rounds} rounds")
    print(f"engine / by hand: {statistics.median(ratios):.3f} (median of paired rounds), "
          f"{min(times['engine']) / min(times['by hand']):.3f} (minima)")


if __name__ == "__main__":
    main()
