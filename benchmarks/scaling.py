"""Many devices: bytes between them against the least, input against need, the price of checkpoints, predictions.

    PYTHONPATH=. python benchmarks/scaling.py [--only collectives input checkpoints predictions] [--rounds 4]

collectives: bytes that each device sends in a step, read from programs compiled for 8 imitated CPU devices, and the
    least that the mesh asks for: gradients of trainable parameters once around a ring, 2 gathers and a reduce-scatter
    of parameters that `fsdp` splits, 4 sums of activations a block over `model`, statistics of BatchNorm.
input: images a second from a folder of JPEG files (500 x 375, random crops to 224, flips) by number of threads.
checkpoints: how long a save keeps the loop, and how much slower the steps behind it are.
predictions: step time and memory of ViT-B/16, ViT-L/16 and ResNet-50 on machines that are not here. Their assumptions
    are the constants below and are printed with the table. Nothing in it was measured on such a machine.

docs/scaling.md has the tables and what they mean.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType
from PIL import Image
from rich.console import Console

from transfer_jax.core.mesh import AXES, mesh_sizes
from transfer_jax.core.spec import Component, build
from transfer_jax.data import open_stream
from transfer_jax.data.spec import StreamSpec
from transfer_jax.experiment import results
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.planning import compiled_stages, imitate
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import fresh_variables, prepare
from transfer_jax.models import build_backbone
from transfer_jax.models.cost import forward_flops
from transfer_jax.training.checkpoint import Checkpoints
from transfer_jax.training.chips import Chip, machine
from transfer_jax.training.collectives import KINDS, Collective, collectives
from transfer_jax.training.interruption import StopRequest
from transfer_jax.training.lane import Cadence, Hooks, Lane
from transfer_jax.training.loop import train
from transfer_jax.training.memory import gigabytes
from transfer_jax.training.progress import print_table
from transfer_jax.training.sharding import Layout

DEVICES = 8
LINK_SHARE = 0.7  # of the published speed of the links that a ring really gets
UTILISATION = {"vit_base": 0.4, "vit_large": 0.4, "resnet50": 0.25}  # of the peak that the arithmetic really gets
VIT = dict(kind="vit_tiny", width=384, layers=4, heads=8, patch=16)
CNN = dict(kind="cifar_resnet20")
HEAD_ONLY = dict(partition=(("heads/.*", "head"), (".*", "frozen")), groups=dict(head=dict()), cache="never")
CASES = [("vit", mesh, {}) for mesh in (dict(data=8), dict(fsdp=8), dict(model=8), dict(data=4, fsdp=2),
                                        dict(data=2, fsdp=2, model=2))]
CASES += [("cnn", mesh, {}) for mesh in (dict(data=8), dict(fsdp=8), dict(data=4, fsdp=2))]
CASES += [(model, mesh, HEAD_ONLY) for model, mesh in (("vit", dict(data=8)), ("vit", dict(fsdp=8)),
                                                       ("cnn", dict(data=8)))]


@dataclass(frozen=True)
class Target:
    """A training whose step is predicted: `batch` is that of a device."""

    backbone: Mapping[str, Any]
    machine: str
    mesh: Mapping[str, int]
    batch: int


VIT_B, VIT_L = dict(kind="vit_base", scan=True), dict(kind="vit_large", scan=True)
TARGETS = [Target(backbone, name, mesh, batch)
           for name, batches in (("h100-8", (128, 64, 128)), ("v5e-256", (32, 16, 32)), ("v5p-1024", (32, 16, 32)))
           for backbone, mesh, batch in zip((VIT_B, VIT_L, dict(kind="resnet50")), ({}, {"fsdp": 8}, {}), batches,
                                            strict=True)]


def experiment(folder: str, backbone: Mapping[str, Any], mesh: Mapping[str, int], batch: int, size: int,
               stage: Mapping[str, Any], classes: int = 10, **values: Any) -> ExperimentSpec:
    """Supervised training on a few images of noise, read by the host."""
    rng = np.random.default_rng(0)
    path = f"{folder}/{size}-{classes}.npz"
    np.savez(path, train_image=rng.integers(0, 255, (16, size, size, 3), np.uint8),
             train_label=np.arange(16) * (classes - 1) // 15)
    stage = {"init": "fresh", "steps": 1000, "optimizer": dict(kind="adamw"),
             "objective": dict(terms=dict(t=dict(kind="task", task="t", stream="train"))), **stage}
    return build(ExperimentSpec, dict(
        name="scaling", mesh=mesh, compilation_cache=None, stages=dict(s=stage),
        streams=dict(train=dict(data=dict(kind="arrays", path=path), batch_size=batch, storage="host")),
        model=dict(backbones=dict(backbone=backbone), heads=dict(h=dict(kind="linear"))),
        tasks=dict(t=dict(kind="classification", head="h")), **values))


# Bytes between devices


@dataclass(frozen=True)
class Least:
    """The least that each device must send in a step, in bytes, by what it is for."""

    parameters: float = 0.0  # gathered where `fsdp` splits them
    gradients: float = 0.0
    activations: float = 0.0
    statistics: float = 0.0

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.activations + self.statistics


def around(size: float, devices: int) -> float:
    """Bytes each device sends to gather (or to scatter sums of) arrays of `size` bytes; their sum everywhere is two."""
    return size * (devices - 1) / devices


def least(layout: Layout, shapes: Mapping[str, Any], trainable: Sequence[str], scatters: bool = True) -> Least:
    """What parameters and their gradients need.

    Args:
      shapes: of the parameters of one seed, by path.
      scatters: whether sums of gradients may be left in parts; XLA:CPU always makes them whole.
    """
    data, fsdp = layout.mesh.shape["data"], layout.mesh.shape["fsdp"]
    through = any(not path.startswith("heads/") for path in trainable)  # a gradient runs through the backbone
    parameters = gradients = 0.0
    for path, leaf in shapes.items():
        trains = path in trainable
        one = jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
        spec = tuple(layout.params({path: one}, frozen=not trains)[path].spec)
        size = leaf.dtype.itemsize * math.prod(leaf.shape) / (layout.mesh.shape["model"] if "model" in spec else 1)
        if "fsdp" in spec:
            parameters += (2 if through else 1) * around(size, fsdp)
        if trains and "fsdp" in spec and scatters:
            gradients += around(size, fsdp) + 2 * around(size / fsdp, data)
        elif trains:
            gradients += 2 * around(size, data * fsdp)
    return Least(parameters, gradients)


def least_beside(layout: Layout, blocks: int, activation: float, channels: int) -> Least:
    """What the examples of a device need.

    Args:
      blocks, activation: of a transformer, and bytes of one activation of all examples of a device; each block has two
        branches, whose results are summed over `model` on the way forward, and whose gradients on the way back.
      channels: of all BatchNorms: two sums each forward and two backward.
    """
    parts = layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]
    return Least(activations=4 * blocks * 2 * around(activation, layout.mesh.shape["model"]),
                 statistics=2 * around(4 * channels * 4, parts))


def added(a: Least, b: Least) -> Least:
    return Least(*(x + y for x, y in zip(vars(a).values(), vars(b).values(), strict=True)))


def of_case(assembly: Assembly, backbone: Mapping[str, Any], size: int, scatters: bool) -> Least:
    """The least of a stage as it is compiled here."""
    ready, layout = prepare(assembly, "s"), assembly.layout
    trains = bool([path for path in ready.program.partition.trainable if not path.startswith("heads/")])
    channels = sum(leaf.shape[-1] for leaf in jax.tree.leaves(assembly.variable_shapes.get("batch_stats", {}))) // 2
    local = assembly.spec.streams["train"].batch_size // (layout.mesh.shape["data"] * layout.mesh.shape["fsdp"])
    tokens = (size // backbone.get("patch", size)) ** 2 + 1
    activation = 4 * local * tokens * backbone.get("width", 0)
    return added(least(layout, ready.shapes, tuple(ready.program.partition.trainable), scatters),
                 least_beside(layout, backbone.get("layers", 0) if trains else 0, activation,
                              channels if trains else 0))


def collective_row(model: str, mesh: Mapping[str, int], frozen: bool, found: Sequence[Collective],
                   best: Least, whole: Least) -> tuple[str, ...]:
    # Data from the host come step by step, so that what lies outside of the loop over steps is also run in each.
    moved = {kind: sum(one.sent for one in found if one.kind == kind) for kind in KINDS}
    total = sum(moved.values())
    kinds = ", ".join(f"{kind} {bytes_ / 1e6:.3g}" for kind, bytes_ in moved.items() if bytes_)
    return (model + (", head only" if frozen else ""), named(mesh), kinds, f"{total / 1e6:.3g}",
            f"{best.total / 1e6:.3g}", f"{total / best.total:.2f}", f"{total / whole.total:.2f}")


def named(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one"


def show_collectives(given: argparse.Namespace) -> None:
    """Prints what each device sends for every case."""
    imitate(DEVICES)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model, mesh, stage in CASES:
            backbone, size = (VIT, 224) if model == "vit" else (CNN, 32)
            spec = experiment(folder, backbone, mesh, 256, size, stage)
            (_, program), = compiled_stages(spec, None)
            assembly = Assembly(spec)
            rows.append(collective_row(model, mesh, bool(stage), collectives(program.as_text()),
                                       of_case(assembly, backbone, size, True),
                                       of_case(assembly, backbone, size, False)))
            print(" | ".join(rows[-1]), flush=True)
    print_table(("model", "mesh", "sent by a device and step, MB", "sum", "least", "ratio", "to least without scatter"),
                rows, Console(width=160), f"compiled for {DEVICES} imitated CPU devices, float32, batch 256")


# Input


def photographs(folder: Path, number: int) -> None:
    """JPEG files about as large, and as hard to decode, as photographs of 500 x 375 pixels."""
    rng = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
        coarse = coarse.resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(coarse, np.float32) + rng.normal(0, 12, (375, 500, 3)), 0, 255).astype(np.uint8)
        place = folder / f"class{index % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(noisy).save(place / f"{index}.jpg", quality=90)


def supply(folder: str, threads: int) -> Iterator[Any]:
    """Training batches of 32 from the folder."""
    spec = build(StreamSpec, dict(data=dict(kind="folder", path=folder), batch_size=32, image_size=(224, 224),
                                  storage="host", threads=threads,
                                  augment=(dict(kind="random_resized_crop"), dict(kind="flip"))))
    return open_stream("train", spec, (0,)).host_batches(0)


def show_input(given: argparse.Namespace) -> None:
    """Prints images a second by number of threads."""
    counts, batches = (1, 2, 4, 8), 8
    rates: dict[int, list[float]] = {threads: [] for threads in counts}
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), 128)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.jpg")) / 128
        for _ in range(given.rounds):
            for threads in counts:
                stream = supply(folder, threads)
                for _ in range(2 * threads):  # fill what is read ahead, so that it is not counted
                    next(stream)
                began = time.perf_counter()
                for _ in range(batches + 2 * threads):
                    next(stream)
                rates[threads].append(32 * (batches + 2 * threads) / (time.perf_counter() - began))
                stream.close()
    print_table(("threads", "images/s", "min", "max"), [
        (str(threads), f"{statistics.median(found):.0f}", f"{min(found):.0f}", f"{max(found):.0f}")
        for threads, found in rates.items()], Console(width=120),
        f"JPEG 500 x 375, {size / 1e3:.0f} kB each, {given.rounds} rounds")


# Checkpoints


def show_checkpoints(given: argparse.Namespace) -> None:
    """Trains in windows, every other one with a save at its start, and prints what the saves cost."""
    with tempfile.TemporaryDirectory() as folder:
        spec = experiment(folder, dict(kind="vit_small", patch=8), {}, 16, 32, dict(steps=given.window * (
            2 * given.rounds + 2)), log_every=given.window)
        blocked, plain, saved, size = windows(spec, Path(folder) / "checkpoints", given.window)
    extra = [a - b for a, b in zip(saved, plain, strict=True)]
    blocked_, extra_ = statistics.median(blocked), statistics.median(extra)
    print_table(("", "median s", "min", "max", "% of 60 s"), [
        (name, f"{statistics.median(found):.3f}", f"{min(found):.3f}", f"{max(found):.3f}", share)
        for name, found, share in (("save() keeps the loop", blocked, f"{100 * blocked_ / 60:.2f}"),
                                   (f"{given.window} steps after a save", saved, ""),
                                   (f"{given.window} steps without", plain, ""),
                                   ("difference, pair by pair, save() included", extra, f"{100 * extra_ / 60:.2f}"))],
        Console(width=120), f"ViT-S with Adam, {gigabytes(size)} a checkpoint, {len(blocked)} saves")


def windows(spec: ExperimentSpec, folder: Path, length: int) -> tuple[list[float], list[float], list[float], int]:
    """Seconds of each save, of windows without and with one, and bytes of a checkpoint; a pair first to warm up."""
    assembly = Assembly(spec)
    ready = prepare(assembly, "s")
    state, constants = ready.placed(*ready.start(*fresh_variables(assembly), 2, 1))
    checkpoints, blocked, times, ended = Checkpoints(folder), [], [], [time.perf_counter()]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    def point(step: int, state: Any) -> None:
        checkpoints.wait()  # so that a window without a save is one without
        times.append(time.perf_counter() - ended[0])
        ended[0] = time.perf_counter()
        if len(times) % 2:
            checkpoints.save(step, results.checkpoint_tree(state, constants, {}))
            blocked.append(time.perf_counter() - ended[0])

    def nothing(*_: Any) -> None:
        return None

    with StopRequest() as stop:
        lane = Lane("fit", ready.program, state, constants, {}, ready.seeds((0,)), ["accuracy", "loss"],
                    Cadence(length, 0, length), Hooks(nothing, nothing, point, nothing))
        train([lane], stop, length)
    checkpoints.wait()
    times = times[1:]  # the first holds the compilation; then a window after a save and one without take turns
    pairs = len(times) // 2
    return blocked[1:pairs], times[3:2 * pairs:2], times[2:2 * pairs:2], size


# Predictions


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step: arithmetic, and exchange that may or may not hide behind it."""

    arithmetic: float
    exchange: float

    @property
    def hidden(self) -> float:
        """All exchange happens during arithmetic."""
        return max(self.arithmetic, self.exchange)

    @property
    def exposed(self) -> float:
        """None of it does."""
        return self.arithmetic + self.exchange


def predict(chip: Chip, flops: float, batch: int, utilisation: float, sent: float) -> Prediction:
    """A step of a device.

    Args:
      flops: of one example, forward; backward is twice as much.
      batch: examples of the device.
      sent: bytes that the device sends in a step.
    """
    return Prediction(3 * flops * batch / (chip.flops * utilisation), sent / (chip.link * LINK_SHARE))


def outline(mesh: Mapping[str, int], devices: int) -> Layout:
    """A layout on devices that are not there."""
    sizes = mesh_sizes(mesh, devices)
    return Layout(AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES)))


def stand_in(target: Target) -> tuple[dict[str, int], int]:
    """Mesh and batch of `DEVICES` devices, each of which holds what one of the target holds.

    Fewer devices share the axis `data`: it splits nothing but the batch, and a device keeps its number of examples.
    """
    return {**target.mesh, "data": -1}, target.batch * DEVICES // target.mesh.get("model", 1)


def show_predictions(given: argparse.Namespace) -> None:
    """Prints the table of predictions."""
    imitate(DEVICES)
    rows, programs = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            chip, _ = machine(target.machine)
            mesh, batch = stand_in(target)
            spec = experiment(folder, target.backbone, mesh, batch, 224, {}, 1000, precision="bfloat16")
            key = target.backbone["kind"], batch
            if key not in programs:  # machines whose devices hold the same share it
                (plan, _), = compiled_stages(spec, chip)
                programs[key] = plan.total, prepare(Assembly(spec), "s").shapes
            rows.append(predicted_row(target, *programs[key]))
            print(" | ".join(rows[-1]), flush=True)
    print_table(("model", "machine", "mesh", "batch", "memory", "share", "arithmetic", "exchange", "step", "images/s"),
                rows, Console(width=160), "predictions, not measurements")
    print(f"assumed: forward x 3 operations in bfloat16 at {UTILISATION} of the peak; rings at {LINK_SHARE} of the "
          f"published speed; parameters, gradients and optimizer in float32; step: exchange all behind arithmetic, or "
          f"none of it; memory as XLA:CPU compiles it; input never waits")


def predicted_row(target: Target, memory: int, shapes: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table of predictions.

    Args:
      memory: bytes that a device holds.
      shapes: of all parameters, which all train.
    """
    kind = target.backbone["kind"]
    chip, devices = machine(target.machine)
    layout = outline(target.mesh, devices)
    found = predict(chip, forward_flops(build_backbone(Component(kind=kind))), target.batch, UTILISATION[kind],
                    least(layout, shapes, tuple(shapes)).total)
    examples = target.batch * layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]
    return (kind, target.machine, named(layout.mesh.shape), str(examples), gigabytes(memory),
            f"{100 * memory / chip.memory:.0f} %", milliseconds(found.arithmetic), milliseconds(found.exchange),
            f"{milliseconds(found.hidden)} to {milliseconds(found.exposed)}",
            f"{examples / found.exposed:,.0f} to {examples / found.hidden:,.0f}")


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "collectives": show_collectives, "input": show_input, "checkpoints": show_checkpoints,
    "predictions": show_predictions}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--window", type=int, default=20, help="steps between two looks at the clock, for checkpoints")
    given = options.parse_args()
    if len(given.only) == 1:
        SECTIONS[given.only[0]](given)
        return
    for name in given.only:  # a process has as many devices as it started with
        subprocess.run([sys.executable, __file__, "--only", name, "--rounds", str(given.rounds), "--window",
                        str(given.window)], check=True)


if __name__ == "__main__":
    main()
