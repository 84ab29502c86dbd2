"""The one compiled training step: batches -> terms -> gradients of what moves -> optimizer.

A `Program` is everything static about a stage. `train_step` is pure and speaks of one seed; `compile_chunk` runs
many steps per dispatch, for all seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from transfer_jax.core.compilation import compiled
from transfer_jax.core.members import over_members
from transfer_jax.core.mesh import shard_batch
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.models.model import Model
from transfer_jax.objectives.reduction import scaled_by_mass
from transfer_jax.objectives.wiring import Term, call_term, labelled_mass
from transfer_jax.params.optimizer_tree import apply_groups
from transfer_jax.params.partition import Partition
from transfer_jax.params.peft import PeftSpec, merged
from transfer_jax.training.choice import STEPS, apply_one
from transfer_jax.training.forward import Passage, make_context, merge_statistics
from transfer_jax.training.state import Constants, Flat, State


class Side(NamedTuple):
    """What moves beside the parameters, without a gradient: see `State`."""

    batch_stats: Any
    carried: dict[str, Any]


# Losses, moving and held leaves, key -> total and metrics.
Combine = Callable[[dict[str, jax.Array], Mapping[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
# Gradients [T, P], key -> gradient [P], or that and metrics.
GradientRule = Callable[[jax.Array, jax.Array], jax.Array | tuple[jax.Array, dict[str, jax.Array]]]


@dataclass(frozen=True)
class Update:
    """One bound update of the objective. Exactly one of `combine` and `gradient_rule` is set."""

    terms: tuple[Term, ...]
    groups: frozenset[str]
    repeats: int
    combine: Combine | None
    gradient_rule: GradientRule | None
    alternatives: tuple[Update, ...] = ()  # of which a step applies one, by `Program.plans`

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stream for term in self.terms for stream in term.spec.roles.values()))


@dataclass(frozen=True, eq=False)
class Program:
    """All that is static about the training of a stage. Programs compare by identity."""

    model: Model
    streams: Mapping[str, Any]
    updates: tuple[Update, ...]
    partition: Partition
    peft: Mapping[str, PeftSpec]
    optimizer: Callable[[Mapping[str, Any]], optax.GradientTransformation]  # peak rates of the groups -> optimizer
    total_steps: int
    norm_paths: tuple[str, ...]
    mesh: Mesh | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    joint_forward: bool = False
    stored_norms: bool = False
    passages: Mapping[str, Passage] = field(default_factory=dict)  # of streams that differ from `Passage()`
    carried: Callable[[], dict[str, Any]] = dict  # what terms carry at the start, by their names
    mixing: Callable[[Mapping[str, Any], jax.Array], Mapping[str, Any]] | None = None  # batch, key -> edits of taps
    weighted: tuple[str, ...] = ()  # streams whose examples have a weight in `Constants.statistics`
    noise: Callable[[Flat, Flat, jax.Array], Flat] | None = None  # moving leaves, the start, key: see `make_noise`
    ema_decay: float | None = None
    ema_warmup: bool = True
    averages: Callable[[Any, Flat], Flat] | None = None  # optimizer state, leaves -> averages that the optimizer keeps
    plans: Callable[[tuple[int, ...]], dict[str, Any]] = lambda seeds: {}  # choices of alternatives: see `make_plans`
    log_every: int = 50
    members: str = "auto"  # see `over_members`

    @functools.cached_property
    def _traced(self) -> dict[frozenset[str], Callable]:
        return {}

    def moved(self, active: frozenset[str]) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
        """`_moved` of this program, traced once for the names of its metrics and for the step."""
        if active not in self._traced:
            self._traced[active] = jax.jit(functools.partial(_moved, self, active), inline=True)
        return self._traced[active]

    def frozen_norms(self, active: frozenset[str]) -> frozenset[str]:
        if self.stored_norms:
            return frozenset(self.norm_paths)
        return self.partition.frozen_norms(self.norm_paths, active)


def weights_name(stream: str) -> str:
    """Under which name the weights of a stream's examples lie in `Constants.statistics`."""
    return f"weights/{stream}"


def choices_name(update: int) -> str:
    """Under which name the choices among an update's alternatives lie in the seeds of a stage."""
    return f"choices/{update}"


def turns_name(stream: str) -> str:
    """Under which name the seeds of a stage say how many steps have read a stream that not all of them read."""
    return f"turns/{stream}"


def init_state(program: Program, trainable: Flat, batch_stats: Any, rates: Flat, metrics: int) -> State:
    """The state at step 0 of one seed."""
    averaging = program.ema_decay is not None or program.averages is not None
    ema = _ema_targets(trainable, batch_stats) if averaging else {}
    return State(trainable, batch_stats, program.optimizer(rates).init(trainable), ema,
                 jnp.zeros(metrics, jnp.float32), jnp.full(2, -1, jnp.int32), program.carried())


def metric_names(program: Program, state: State, constants: Constants, feeds: Any, seeds: Any) -> list[str]:
    """Names of the metrics of a step, in the order of `State.sums`; arguments are those of one seed."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    moved = program.moved(program.partition.active(program.total_steps))
    _, metrics = jax.eval_shape(moved, _uncounted(state), constants, feeds, seeds, step)
    return sorted(metrics)


def _uncounted(state: State) -> State:
    """The state without what depends on the number of metrics, so that one trace serves their names and the step."""
    return state._replace(sums=(), bad=())


def train_step(program: Program, active: frozenset[str], state: State, constants: Constants, feeds: Any,
               seeds: Any, step: jax.Array) -> State:
    """One step of one seed.

    Args:
      program, active: static; `active` names the groups that move at this step.
      state, constants: see `State`, `Constants`.
      feeds: stream -> what the stream's `batch` takes (data on the device, or a batch from the host).
      seeds: {'data': uint32 for the order of examples and augmentation, 'step': uint32 for dropout and the like}.
      step: int32 scalar, counted from the stage's start.
    """
    new, metrics = program.moved(active)(_uncounted(state), constants, feeds, seeds, step)
    values = jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)])
    finite = jnp.isfinite(values)
    fresh = (state.bad[0] < 0) & ~finite.all()
    bad = jnp.where(fresh, jnp.stack([step, jnp.argmin(finite).astype(jnp.int32)]), state.bad)
    sums = jnp.where(step % program.log_every == 0, 0.0, state.sums) + values
    return new._replace(sums=sums, bad=bad)


def _moved(program: Program, active: frozenset[str], state: State, constants: Constants, feeds: Any, seeds: Any,
           step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    batches = {name: _batch(program, name, feed, constants, seeds["data"], step) for name, feed in feeds.items()
               if turns_name(name) not in seeds}
    key = jax.random.fold_in(jax.random.key(seeds["step"]), step)
    metrics: dict[str, jax.Array] = {}
    turn = 0
    for number, update in enumerate(program.updates):
        for _ in range(update.repeats):
            own = jax.random.fold_in(key, turn)
            if update.alternatives:
                state, found = _apply_alternative(program, update, seeds[choices_name(number)][step], active, state,
                                                  constants, feeds, batches, seeds, own, step)
            else:
                state, found = _apply_update(program, update, active, state, constants, batches, own, step)
            turn += 1
        metrics.update(found)
    if program.ema_decay is not None:
        state = state._replace(ema=_averaged(program, state, step))
    if program.averages is not None:
        state = state._replace(ema=_ema_targets(program.averages(state.opt_state, state.trainable), state.batch_stats))
    return state, metrics


def _batch(program: Program, name: str, feed: Any, constants: Constants, seed: Any, step: jax.Array) -> Any:
    """The batch of a stream at its own step, with the weights of its examples."""
    batch = program.streams[name].batch(feed, seed, step)
    if name in program.weighted:
        known = constants.statistics[weights_name(name)]
        batch = {**batch, "weight": batch["weight"] * known[batch["position"]]}
    return shard_batch(program.mesh, batch)


def _apply_alternative(program: Program, update: Update, choice: jax.Array, active: frozenset[str], state: State,
                       constants: Constants, feeds: Any, batches: Mapping[str, Any], seeds: Any, key: jax.Array,
                       step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """One of the alternatives of an update. Streams that only some of them read are drawn where they are."""
    def applied(alternative: Update) -> Callable[[State], tuple[State, dict[str, jax.Array]]]:
        def run(state: State) -> tuple[State, dict[str, jax.Array]]:
            own = {name: batches[name] if name in batches else
                   _batch(program, name, feeds[name], constants, seeds["data"], seeds[turns_name(name)][step])
                   for name in alternative.streams}
            state, metrics = _apply_update(program, alternative, active, state, constants, own, key, step)
            return state, {term.name + STEPS: 1.0 for term in alternative.terms} | metrics

        return run

    return apply_one([applied(alternative) for alternative in update.alternatives], choice, state)


def _apply_update(program: Program, update: Update, active: frozenset[str], state: State, constants: Constants,
                  batches: Mapping[str, Any], key: jax.Array, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    groups = update.groups & active
    moving = {path: leaf for path, leaf in state.trainable.items() if program.partition.group_of[path] in groups}
    held = {path: leaf for path, leaf in state.trainable.items() if path not in moving} | constants.frozen
    frozen_norms = program.frozen_norms(active)

    passages = {name: program.passages.get(name, Passage()) for name in program.streams}
    averaged = _averaged_model(program, constants, state) if program.ema_decay is not None else None
    masses = {term.name: labelled_mass(term, batches) for term in update.terms}

    def losses(moving: Flat, side: Side, batches: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        run = moving if program.noise is None else program.noise(moving, constants.initial, jax.random.fold_in(key, 2))
        now, then = (merged(program.peft, leaves) for leaves in ({**held, **run},
                                                                  {**constants.frozen, **constants.initial}))
        context, statistics = make_context(
            program.model, now, side.batch_stats, update.streams, batches, streams=program.streams, passages=passages,
            key=key, frozen_norms=frozen_norms, all_norms=program.norm_paths, joint=program.joint_forward,
            parameters={**state.trainable, **moving}, initial=constants.initial, statistics=constants.statistics,
            progress=step / program.total_steps, start=(then, constants.initial_stats), averaged=averaged,
            carried=side.carried, mixing=program.mixing)
        values, metrics, carried = {}, {}, dict(side.carried)
        for term in update.terms:
            value, extra, kept = call_term(term, context)
            if masses[term.name] is not None:
                value, extra = scaled_by_mass((value, extra), labelled_mass(term, batches), masses[term.name],
                                              program.accumulate)
                metrics[term.name + STEPS] = (masses[term.name] > 0).astype(jnp.float32)
            metrics[term.name] = value
            metrics |= {f"{term.name}/{name}": jax.lax.stop_gradient(v) for name, v in extra.items()}
            values[term.name] = value * term.weight(step, program.total_steps)
            carried |= {} if kept is None else {term.name: kept}
        side = Side(merge_statistics(side.batch_stats, statistics()), carried)
        if update.gradient_rule is not None:
            metrics["loss"] = sum(values.values())
            return jnp.stack(list(values.values())), (metrics, side)
        total, extra = update.combine(values, {**held, **moving}, jax.random.fold_in(key, 1))
        return total, ({**metrics, **extra, "loss": total}, side)

    grads, metrics, side = _gradients(program, update, losses, moving, Side(state.batch_stats, state.carried), batches,
                                      key)
    if program.clip_norm is not None:
        norm = optax.tree.norm(grads)
        metrics["gradient_norm"] = norm
        scale = jnp.minimum(1.0, program.clip_norm / jnp.maximum(norm, 1e-12))
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    trainable, opt_state = apply_groups(program.optimizer(constants.rates), grads, state.opt_state, state.trainable,
                                        program.partition, groups, metrics["loss"])
    return state._replace(trainable=trainable, opt_state=opt_state, **side._asdict()), metrics


def _averaged_model(program: Program, constants: Constants, state: State) -> tuple[Flat, Any]:
    """Parameters and statistics of the moving average, all leaves."""
    params, batch_stats = averaged_variables(state)
    return merged(program.peft, {**constants.frozen, **state.trainable, **params}), batch_stats


def _gradients(program: Program, update: Update, losses: Callable, moving: Flat, side: Side,
               batches: Mapping[str, Any], key: jax.Array) -> tuple[Flat, dict[str, jax.Array], Side]:
    """Gradients and metrics, averaged over micro-batches where `accumulate` is above 1, and what moves beside."""
    def one(side: Side, batches: Any, key: jax.Array) -> tuple[Flat, dict[str, jax.Array], Side]:
        if update.gradient_rule is None:
            (_, (metrics, moved)), grads = jax.value_and_grad(losses, has_aux=True)(moving, side, batches, key)
            return grads, metrics, moved
        return _ruled_gradients(update, losses, moving, side, batches, key)

    count = program.accumulate
    if count == 1:
        return one(side, batches, key)
    parts = jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batches)
    # Every micro-batch is split over all devices; as they are cut, one would lie on few of them.
    parts = {name: shard_batch(program.mesh, part, axis=1) for name, part in parts.items()}

    def body(carry: Any, number: jax.Array) -> tuple[Any, None]:
        grads, metrics, side = carry
        part = jax.tree.map(lambda x: x[number], parts)
        new, found, side = one(side, part, jax.random.fold_in(key, number))
        return (*jax.tree.map(lambda a, b: a + b / count, (grads, metrics), (new, found)), side), None

    shapes = jax.eval_shape(one, side, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1]))
    (grads, metrics, side), _ = jax.lax.scan(body, (*zeros, side), jnp.arange(count))
    return grads, metrics, side


def _ruled_gradients(update: Update, losses: Callable, moving: Flat, side: Side, batches: Any,
                     key: jax.Array) -> tuple[Flat, dict[str, jax.Array], Side]:
    """One gradient per term, combined by the update's rule on flat vectors."""
    values, pull, (metrics, moved) = jax.vjp(lambda m: losses(m, side, batches, key), moving, has_aux=True)
    per_task = jax.vmap(lambda direction: pull(direction)[0])(jnp.eye(len(values), dtype=values.dtype))
    _, unravel = jax.flatten_util.ravel_pytree(moving)
    matrix = jax.vmap(lambda tree: jax.flatten_util.ravel_pytree(tree)[0])(per_task)
    found = update.gradient_rule(matrix, jax.random.fold_in(key, 1))
    gradient, extra = found if isinstance(found, tuple) else (found, {})
    return unravel(gradient), {**metrics, **extra}, moved


def _ema_targets(trainable: Flat, batch_stats: Any) -> Flat:
    return ({f"params/{path}": leaf for path, leaf in trainable.items()}
            | {f"stats/{path}": leaf for path, leaf in flatten(batch_stats).items()})


def _averaged(program: Program, state: State, step: jax.Array) -> Flat:
    decay = program.ema_decay
    if program.ema_warmup:
        decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    targets = _ema_targets(state.trainable, state.batch_stats)
    return {path: old + (1 - decay) * (targets[path] - old) for path, old in state.ema.items()}


def averaged_variables(state: State) -> tuple[Flat, Any]:
    """The averaged parameters and statistics that `State.ema` holds."""
    parts = {kind: {path.removeprefix(kind): leaf for path, leaf in state.ema.items() if path.startswith(kind)}
             for kind in ("params/", "stats/")}
    return parts["params/"], unflatten(parts["stats/"])


def compile_chunk(program: Program, members: int, active: frozenset[str], shardings: Any = None) -> Any:
    """The jitted `(state, constants, feeds, seeds, first_step, count) -> state` that runs `count` steps.

    `count` is dynamic, so every chunk length shares one program. The state's buffers are donated; its arrays stay where
    `shardings` (a tree like the state) says.
    """
    axes = (0, 0, feed_axes(program), 0)

    def chunk(state: State, constants: Constants, feeds: Any, seeds: Any, first: jax.Array, count: jax.Array) -> State:
        def steps(state: State, constants: Constants, feeds: Any, seeds: Any) -> State:
            def body(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
                step, state = carry
                known = _kept_in_parts(program.mesh, constants, step)
                return step + 1, train_step(program, active, state, known, feeds, seeds, step)

            return jax.lax.while_loop(lambda carry: carry[0] < first + count, body, (first, state))[1]

        return over_members(steps, members, axes, program.members)(state, constants, feeds, seeds)

    return compiled(chunk, donate_argnums=0, out_shardings=shardings)


def _kept_in_parts(mesh: Mesh | None, constants: Constants, step: jax.Array) -> Constants:
    """Constants that seem to depend on the step. What the compiler knows to stay the same it computes before the loop:
    frozen parameters that `fsdp` splits would be gathered there, all at once, and lie whole on every device."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return constants
    return jax.lax.optimization_barrier((constants, step))[0]


def feed_axes(program: Program) -> dict[str, Any]:
    """Member axes of the feeds: data on the device is shared by all seeds, their example lists are not."""
    return {name: program.streams[name].feed_axes() for name in
            dict.fromkeys(stream for update in program.updates for stream in update.streams)}
