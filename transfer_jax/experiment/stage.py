"""A stage made ready: its program, its parameters at the start, and its duration."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.mesh import place
from transfer_jax.core.paths import flatten
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.consolidation import check_statistics
from transfer_jax.experiment.entering import check_heads_apart, shared_taps
from transfer_jax.experiment.passages import (
    check_domains,
    check_terms,
    first_carried,
    passages,
    style_mixing,
    weighted_streams,
)
from transfer_jax.experiment.spec import StageSpec
from transfer_jax.experiment.staying import inherited_methods, kept_methods
from transfer_jax.experiment.task_sampling import by_task, check_labels, make_plans
from transfer_jax.models.depth import parameter_blocks
from transfer_jax.models.domains import main_statistics, with_domains
from transfer_jax.objectives import COMBINATION_PARAMETERS
from transfer_jax.objectives.combining import LEARNED, check_affinity, check_gradients, make_combination
from transfer_jax.objectives.spec import UpdateSpec
from transfer_jax.objectives.wiring import Term, make_terms
from transfer_jax.params.inserts import PREFIX, head_of
from transfer_jax.params.optimizer_tree import GroupDefaults, averaged_leaves, group_table, make_optimizer, peak_rates
from transfer_jax.params.partition import Partition, partition
from transfer_jax.params.peft import PeftSpec, new_leaves
from transfer_jax.params.weight_noise import make_noise
from transfer_jax.training.chunk import feed_axes
from transfer_jax.training.sharding import Layout
from transfer_jax.training.state import Constants, Flat, State
from transfer_jax.training.step import Program, Update, init_state, metric_names


@dataclass(frozen=True)
class ReadyStage:
    """Everything that training a stage needs, before its parameters have values."""

    name: str
    spec: StageSpec
    program: Program
    defaults: GroupDefaults
    shapes: Mapping[str, Any]  # every parameter of the stage, of one seed
    outlines: Mapping[str, Any]  # of the backbones, where a method of `peft` inserts into them
    inherited: tuple[str, ...]  # leaves of adapters and prompts that the start holds already
    keeps_start: bool  # something compares with the model at the stage's start
    layout: Layout

    def table(self) -> list[dict[str, Any]]:
        """The group table; see `group_table`."""
        parts = self.program.partition
        return group_table(parts, self.shapes, self.defaults,
                           self.program.optimizer(peak_rates(parts.groups, self.defaults)))

    def start(self, params: Flat, batch_stats: Any, metrics: int, members: int,
              statistics: Mapping[str, Any] | None = None) -> tuple[State, Constants]:
        """State and constants at step 0 from parameters with a member axis; `statistics`: see `Measuring`."""
        batch_stats = self.own_statistics(batch_stats)
        trainable = {path: params[path] for path in self.program.partition.trainable}
        frozen = {path: leaf for path, leaf in params.items() if path not in trainable}
        rates = {group: jnp.full(members, rate, jnp.float32)
                 for group, rate in peak_rates(self.program.partition.groups, self.defaults).items()}
        begin = jax.vmap(lambda t, s, r: init_state(self.program, t, s, r, metrics), axis_size=members)
        shardings = self.layout.of(jax.eval_shape(begin, trainable, batch_stats, rates), trainable)
        state = jax.jit(begin, out_shardings=shardings)(trainable, batch_stats, rates)
        # The start must not share buffers with the state, which the step donates.
        initial, stats = jax.tree.map(jnp.copy, (trainable, batch_stats)) if self.keeps_start else ({}, {})
        return state, Constants(frozen, initial, stats, rates, dict(statistics or {}))

    def own_statistics(self, batch_stats: Any) -> Any:
        """The statistics of norms that the stage moves, from those of its start: of every domain, or the main ones."""
        domains = dict.fromkeys(p.statistics for p in self.program.passages.values() if p.statistics is not None)
        return with_domains(batch_stats, tuple(domains)) if domains else main_statistics(batch_stats)

    def shardings(self, state: State, constants: Constants) -> tuple[State, Constants]:
        """Where the arrays of state and constants go."""
        return (self.layout.of(state, state.trainable),
                self.layout.of(constants, {**state.trainable, **constants.frozen}, list(constants.frozen)))

    def placed(self, state: State, constants: Constants) -> tuple[State, Constants]:
        """State and constants on the mesh."""
        return place((state, constants), self.shardings(state, constants))

    def seeds(self, seeds: tuple[int, ...]) -> dict[str, Any]:
        """Numbers that decide every draw of the stage, uint32 [S], and its plans: see `train_step`."""
        return {"data": np.asarray(seeds, np.uint32), "step": _salted(seeds, self.name), **self.program.plans(seeds)}


def _salted(seeds: tuple[int, ...], text: str) -> np.ndarray:
    return np.asarray([zlib.crc32(f"{seed}/{text}".encode()) for seed in seeds], np.uint32)


def prepare(assembly: Assembly, name: str) -> ReadyStage:
    """Builds the program of a stage; every inconsistency of its configuration raises here."""
    spec = assembly.spec.stages[name]
    where = f"config.stages.{name}"
    bound = [(update, make_terms(update, assembly.spec.tasks, f"{where}.objective"))
             for update in spec.objective.ordered]
    terms = [term for _, found in bound for term in found]
    shapes = _shapes(assembly, name, bound, where)
    renew(shapes, shapes, spec.new, where)  # its patterns must match
    check_heads_apart(assembly, spec, shapes, where)
    streams = {stream: assembly.stream(stream) for stream in spec.objective.streams()}
    steps = total_steps(spec, streams)
    parts = split(assembly, spec, terms, shapes, steps, where) if terms else \
        Partition(dict.fromkeys(shapes, "frozen"), {})
    defaults = GroupDefaults(spec.optimizer, spec.lr, spec.schedule, spec.warmup_steps, spec.weight_decay)
    # Numbering the blocks traces the networks, so only a stage that asks for it pays.
    decayed = depths(assembly, shapes) if any(g.layer_decay != 1 for g in parts.groups.values()) else {}
    inputs = {stream: tuple(opened.spec.inputs) for stream, opened in streams.items()}
    updates = tuple(_bind_update(update, number, found, parts, inputs, assembly.model.inserts, spec.accumulate,
                                 f"{where}.objective") for number, (update, found) in enumerate(bound))
    program = Program(
        model=dataclasses.replace(assembly.model, stochastic_norm=spec.stochastic_norm), streams=streams,
        updates=updates,
        partition=parts, peft=spec.peft,
        optimizer=functools.partial(make_optimizer, parts, defaults, steps, decayed),
        total_steps=steps, norm_paths=assembly.model.norm_paths(assembly.variable_shapes), mesh=assembly.mesh,
        clip_norm=spec.clip_norm, accumulate=spec.accumulate, joint_forward=spec.batch_norm == "joint",
        stored_norms=spec.batch_norm == "stored", passages=passages(spec, streams, where),
        mixing=style_mixing(spec, assembly.model, streams, where),
        weighted=weighted_streams(spec, streams, where), shared=shared_taps(assembly, shapes),
        carried=functools.partial(first_carried, updates, streams),
        noise=make_noise(spec.weight_noise, parts.trainable, f"{where}.weight_noise") if spec.weight_noise else None,
        plans=make_plans(bound, streams, steps, name, f"{where}.objective"), log_every=assembly.spec.log_every,
        members=_members(assembly.spec.members, bound), **_averaging(spec, parts, defaults))
    _check_program(program, where)
    check_terms(terms, spec, where)
    check_statistics(assembly, name, terms, where)
    check_labels(terms, streams, where)
    looks_back = spec.weight_noise is not None or any(term.needs_start for term in terms)
    inherited = tuple(path for path in shapes if path.startswith(tuple(
        f"{PREFIX}{method}/" for method in inherited_methods(assembly.spec, name))))
    return ReadyStage(name, spec, program, defaults, shapes, _outlines(assembly, spec.peft), inherited, looks_back,
                      assembly.layout)


def check_layout(layout: Layout, stages: Sequence[ReadyStage]) -> None:
    """Raises UserError for a rule of sharding that suits no parameter of any stage."""
    layout.check(list(dict.fromkeys(path for ready in stages for path in ready.shapes)))


def names_of_metrics(ready: ReadyStage, variables: tuple[Flat, Any], statistics: Mapping[str, Any],
                     feeds: Mapping[str, Any], seeds: Mapping[str, Any]) -> list[str]:
    """Names of the metrics of a step, found by tracing one.

    Args:
      variables: parameters and statistics of norms [S, ...]; statistics: of the start; all may be shapes.
      feeds: stream -> its data on the device; of a stream from the host, a batch of it is read where it is absent.
    """
    program, members = ready.program, len(seeds["data"])
    if not program.updates:
        return ["loss"]
    state, constants = jax.eval_shape(lambda params, stats, known: ready.start(params, stats, 1, members, known),
                                      *variables, statistics)
    axes, placed = feed_axes(program), NamedSharding(program.mesh, P())  # as in training: the step is traced only once
    shapes = {name: feeds[name] if name in feeds else next(program.streams[name].host_batches(0)) for name in axes}
    one = {name: jax.tree.map(lambda axis, part: part if axis is None else _without_member(part, placed), axes[name],
                              shapes[name], is_leaf=lambda axis: axis is None) for name in axes}
    return metric_names(program, *_without_member((state, constants), placed), one, _without_member(seeds))


def _without_member(tree: Any, sharding: NamedSharding | None = None) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding), tree)


def _averaging(spec: StageSpec, parts: Partition, defaults: GroupDefaults) -> dict[str, Any]:
    """The settings of `Program` that say which averages it keeps."""
    if spec.schedule_free:
        return {"averages": functools.partial(averaged_leaves, parts, defaults)}
    return {"ema_decay": spec.ema.decay, "ema_warmup": spec.ema.warmup} if spec.ema else {}


def _outlines(assembly: Assembly, methods: Mapping[str, PeftSpec]) -> Mapping[str, Any]:
    return assembly.outlines if any(method.stays for method in methods.values()) else {}


def _shapes(assembly: Assembly, name: str, bound: list[tuple[UpdateSpec, list[Term]]],
            where: str) -> dict[str, Any]:
    methods = inherited_methods(assembly.spec, name) | assembly.spec.stages[name].peft
    kept_methods(assembly.spec, name)  # its checks
    if any(method.kind == "domain_shift" for method in methods.values()):
        check_domains(assembly.spec, assembly.spec.stages[name], where)
    shapes = dict(flatten(assembly.variable_shapes["params"]))
    for name, backbone in assembly.model.backbones.items() if methods else ():
        if getattr(backbone, "scan", False):
            raise UserError(f"{where}.peft: the backbone {name!r} stacks its blocks, so that one module stands for "
                            f"all of them; set scan=False")
    add = functools.partial(new_leaves, methods, where=f"{where}.peft", outlines=_outlines(assembly, methods))
    shapes |= jax.eval_shape(add, shapes, jax.ShapeDtypeStruct((), jnp.uint32))
    for update, terms in bound:
        for term in terms if update.combine.kind in COMBINATION_PARAMETERS else ():
            shapes[f"{LEARNED}/{term.name}"] = jax.ShapeDtypeStruct((), jnp.float32)
    return shapes


def added_parameters(ready: ReadyStage, params: Flat, seeds: tuple[int, ...]) -> Flat:
    """What the stage adds to the model's parameters `params` [S, ...]: weights of terms and leaves of `peft`."""
    added = objective_parameters(ready, len(seeds))
    if ready.spec.peft:
        draw = jax.vmap(functools.partial(new_leaves, ready.spec.peft, outlines=ready.outlines))
        numbers = ready.seeds(seeds)["step"]
        shardings = ready.layout.params(jax.eval_shape(draw, params, numbers))
        added |= jax.jit(draw, out_shardings=shardings)(params, numbers)
    return added


def objective_parameters(ready: ReadyStage, members: int) -> Flat:
    """The learned weights of terms at the stage's start, [S] each."""
    values: Flat = {}
    for update in ready.spec.objective.ordered:
        if update.combine.kind in COMBINATION_PARAMETERS:
            initial = COMBINATION_PARAMETERS[update.combine.kind](list(update.terms), **update.combine.arguments)
            values |= {f"{LEARNED}/{name}": jnp.full(members, value) for name, value in initial.items()}
    return values


def split(assembly: Assembly, spec: StageSpec, terms: list[Term], shapes: Mapping[str, Any], steps: int,
          where: str) -> Partition:
    """The partition of the stage; parts of the model that its terms never run are put aside as `unused`."""
    heads = {f"heads/{head}" for term in terms for head in term.heads}
    backbones = {backbone for stream in spec.objective.streams()
                 for backbone in assembly.spec.streams[stream].inputs}
    running = tuple(f"{part}/" for part in heads | backbones | {"objective", "peft"})
    inserts = assembly.model.inserts
    used = [path for path in shapes if path.startswith(running)
            and ((own := head_of(path, inserts)) is None or f"heads/{own}" in heads)]
    groups = {name: group.in_steps(steps) for name, group in spec.group_specs.items()}
    parts = partition(list(shapes), spec.partition, groups, used=used, where=f"{where}.partition")
    if not parts.trainable:
        raise UserError(f"{where}: its objective has terms, but every parameter is frozen; let one group "
                        f"train, or give the stage no objective to evaluate only")
    return parts


def depths(assembly: Assembly, shapes: Mapping[str, Any]) -> dict[str, int]:
    """Layer number of every parameter: the blocks of its backbone in forward order, then the heads, above the deepest
    backbone."""
    blocks = {name: parameter_blocks(backbone) for name, backbone in assembly.model.backbones.items()}
    top = max(map(len, blocks.values()), default=0)
    number = {f"{name}/{module}": top - len(found) + i for name, found in blocks.items()
              for i, block in enumerate(found) for module in block.modules}

    def depth(path: str) -> int:
        plain = path.split("/", 2)[2] if path.startswith(PREFIX) else path
        return number.get("/".join(plain.split("/")[:2]), top)

    return {path: depth(path) for path in shapes}


def total_steps(spec: StageSpec, streams: Mapping[str, Any]) -> int:
    """Steps of the stage; epochs and examples are those of the first stream of its objective."""
    if not streams or spec.steps is not None:
        return spec.steps or 0
    first = next(iter(streams.values()))
    examples = spec.examples if spec.examples is not None else spec.epochs * first.size
    return max(1, math.ceil(examples / first.spec.batch_size))


def _bind_update(update: UpdateSpec, number: int, terms: list[Term], parts: Partition,
                 inputs: Mapping[str, Sequence[str]], inserts: Mapping[str, Any], accumulate: int,
                 where: str) -> Update:
    """`inputs`: stream -> the backbones that it feeds; `inserts`: see `Model`."""
    groups = frozenset(parts.groups if update.groups is None else update.groups)
    for group in groups - set(parts.groups):
        raise unknown("group", group, parts.groups, f"{where}, groups of an update")
    if update.affinity is not None:
        check_affinity(terms, update.sampling is not None, accumulate, where)
    alternatives: tuple[Update, ...] = ()
    if update.sampling is not None:
        alternatives = tuple(_bind_update(one, number, own, parts, inputs, inserts, accumulate, where)
                             for one, own in by_task(update, terms, parts, inputs, inserts, where))
    combination = make_combination(update.combine, terms, where)
    bound = Update(tuple(terms), groups, update.repeats, combination, f"combine/{number}", update.gradients_of,
                   update.on_bad_task == "skip", update.lookahead, update.affinity, alternatives)
    check_gradients(combination, bound.gradients_of, bound.streams, bound.lookahead, accumulate, where)
    return bound


def _members(how: str, bound: Sequence[tuple[UpdateSpec, Sequence[Term]]]) -> str:
    """How seeds run together. One after the other where each chooses its own task: vmapped, a choice computes all."""
    return "map" if how == "auto" and any(update.sampling for update, _ in bound) else how


def _check_program(program: Program, where: str) -> None:
    if program.model.stochastic_norm is not None and not program.norm_paths:
        raise UserError(f"{where}.stochastic_norm: the model has no BatchNorm, so it would do nothing; leave it out")
    for name, stream in program.streams.items():
        if stream.spec.batch_size % program.accumulate:
            raise UserError(f"{where}.accumulate = {program.accumulate} does not divide the batch size "
                            f"{stream.spec.batch_size} of stream {name!r}")


def fresh_variables(assembly: Assembly) -> tuple[Flat, Any]:
    """Parameters and statistics drawn from the seeds, [S, ...], each part on the device that holds it; the same for
    every stage that asks."""
    def draw(seeds: jax.Array) -> Any:
        return jax.vmap(lambda seed: assembly.model.init(jax.random.key(seed), assembly.example_inputs))(seeds)

    seeds = np.asarray(assembly.spec.seeds, np.uint32)
    shardings = assembly.layout.variables(jax.eval_shape(draw, seeds))
    variables = jax.jit(draw, out_shardings=shardings)(seeds)
    return dict(flatten(variables["params"])), variables.get("batch_stats", {})


def renew(params: Flat, fresh: Flat, patterns: tuple[str, ...], where: str) -> Flat:
    """`params` with those that a pattern matches as a whole taken from `fresh`."""
    renewed: set[str] = set()
    for pattern in patterns:
        found = [path for path in params if re.fullmatch(pattern, path)]
        if not found:
            raise UserError(f"{where}.new: {pattern!r} matches no parameter; nearest: "
                            f"{', '.join(list(params)[-3:])}")
        renewed.update(found)
    return {path: fresh[path] if path in renewed else leaf for path, leaf in params.items()}
