"""What each device will hold, for a machine that need not be there: its devices are imitated on this one's CPU.

The stages are compiled for the mesh and never run, so no array is made. Sizes of arrays are exact. Activations are
those of the program as XLA compiles it for a CPU: another backend fuses and orders otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transfer_jax.core.mesh import batch_spec
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.measuring import Measuring
from transfer_jax.experiment.parallel import in_groups
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import ReadyStage, check_layout, names_of_metrics, prepare
from transfer_jax.training.chips import Chip
from transfer_jax.training.chunk import compile_chunk
from transfer_jax.training.memory import COLUMNS, Plan, device_limit, make_plan, plan_row
from transfer_jax.training.progress import print_table


def imitate(devices: int) -> None:
    """Makes this process one with so many CPU devices; before anything asks for a device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def show_plans(spec: ExperimentSpec, chip: Chip | None) -> None:
    """Prints a table of all stages that train, then raises UserError for the first that cannot fit.

    chip: of the machine that the plan is for; None: the devices of this process.
    """
    plans = [plan for plan, _ in compiled_stages(spec, chip)]
    mesh = " x ".join(f"{name} {size}" for name, size in plans[0].mesh.items() if size > 1) if plans else ""
    print_table(COLUMNS, [plan_row(plan) for plan in plans],
                title=f"{spec.name} on {mesh or 'one device'}: what each device holds")
    for plan in plans:
        plan.check()


def compiled_stages(spec: ExperimentSpec, chip: Chip | None) -> list[tuple[Plan, Any]]:
    """The plan and the compiled program of every stage that trains."""
    if chip is not None and spec.members == "auto":
        spec = spec.model_copy(update={"members": "vmap"})  # as on an accelerator
    assembly = Assembly(spec)
    limit = device_limit() if chip is None else int(chip.memory)
    stages = [prepare(assembly, name) for name in spec.stages]
    check_layout(assembly.layout, stages)
    trained = {ready.name: ready for ready in stages if ready.program.updates}
    groups = [[trained[name] for name in group if name in trained] for group in in_groups(spec)]
    return [_compiled(assembly, group, limit) for group in groups if group]


def _compiled(assembly: Assembly, group: Sequence[ReadyStage], limit: int | None) -> tuple[Plan, Any]:
    """Stages that train in parallel are planned as one program; where they are not, their activations add up."""
    outlines = [_outlined(assembly, ready) for ready in group]
    given = tuple(zip(*outlines, strict=True))  # states, constants, feeds and seeds
    parts = [(ready.program, ready.program.partition.active(ready.program.total_steps)) for ready in group]
    shardings = tuple(jax.tree.map(lambda leaf: leaf.sharding, state) for state in given[0])
    numbers = np.zeros(len(group), np.int32)
    executable = compile_chunk(parts, assembly.members, shardings).lower(*given, numbers, numbers).compile()
    name = " + ".join(ready.name for ready in group)
    return make_plan(name, assembly.mesh.shape, *given[:3], [executable], limit), executable


def _outlined(assembly: Assembly, ready: ReadyStage) -> tuple[Any, Any, Any, Any]:
    """State, constants and feeds as shapes where they will lie, and seeds."""
    program, members = ready.program, assembly.members
    feeds = {name: _feed(assembly, name) for name in program.streams}
    params, stats = _with_members((dict(ready.shapes), assembly.variable_shapes.get("batch_stats", {})), members)
    known = Measuring(assembly, ready).shapes(params, stats)
    seeds = ready.seeds(assembly.spec.seeds)
    names = names_of_metrics(ready, (params, stats), known, feeds, seeds)
    shapes = jax.eval_shape(lambda p, s, k: ready.start(p, s, len(names), members, k), params, stats, known)
    shardings = ready.shardings(*shapes)
    return *jax.tree.map(_outline, shapes, shardings), feeds, seeds


def _feed(assembly: Assembly, name: str) -> Any:
    """What a stream gives to a step, as shapes on the mesh; nothing is placed."""
    stream, mesh = assembly.stream(name), assembly.mesh
    feed = stream.feed()
    if feed is None:
        size = stream.spec.batch_size
        whole = {key: np.repeat(value, size, axis=1) for key, value in
                 next(stream.host_batches(0, np.zeros(1, np.int64))).items()}
        return jax.tree.map(lambda leaf: _outline(leaf, NamedSharding(mesh, P(None, *batch_spec(mesh, size)))), whole)
    outlines = jax.tree.map(lambda leaf: _outline(leaf, NamedSharding(mesh, P())), feed)
    assembly.keep_feed(name, outlines)
    return outlines


def _outline(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _with_members(tree: Any, members: int) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype), tree)
