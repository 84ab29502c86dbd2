"""The one compiled training step: batches -> terms -> gradients of what moves -> optimizer.

A `Program` is everything static about a stage. `train_step` is pure and speaks of one seed; `chunk.py` runs many steps
per dispatch, for all seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from transfer_jax.core.mesh import shard_batch
from transfer_jax.core.reduction import scaled_by_mass
from transfer_jax.models.model import Model
from transfer_jax.objectives.combining import Combination
from transfer_jax.objectives.spec import AffinitySpec
from transfer_jax.objectives.wiring import Term, call_term, labelled_mass
from transfer_jax.params.optimizer_tree import apply_groups
from transfer_jax.params.partition import Partition
from transfer_jax.params.peft import PeftSpec, merged
from transfer_jax.training.affinity import affinity_metrics
from transfer_jax.training.averaging import average_targets, averaged_variables, moved_average
from transfer_jax.training.choice import STEPS, apply_one
from transfer_jax.training.forward import Passage, make_context, merge_statistics
from transfer_jax.training.gradients import (
    LENGTH,
    Side,
    TaskGradients,
    plain_gradients,
    ruled,
    spared,
    task_gradients,
    through_tap,
    with_carried,
)
from transfer_jax.training.state import Constants, Flat, State


@dataclass(frozen=True)
class Update:
    """One bound update of the objective; see `CombiningSpec`. `slot`: what `State.carried` calls what it carries."""

    terms: tuple[Term, ...]
    groups: frozenset[str]
    repeats: int
    combination: Combination
    slot: str
    gradients_of: str = "shared"
    skip_bad: bool = False
    lookahead: Mapping[str, str] = field(default_factory=dict)
    affinity: AffinitySpec | None = None
    alternatives: tuple[Update, ...] = ()  # of which a step applies one, by `Program.plans`

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that its terms read."""
        return tuple(dict.fromkeys(stream for term in self.terms for stream in term.spec.roles.values()))

    @property
    def fed(self) -> tuple[str, ...]:
        """Those whose batches it needs."""
        return tuple(dict.fromkeys((*self.streams, *self.lookahead.values())))


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
    shared: Mapping[str, str] = field(default_factory=dict)  # backbone -> tap before what heads have of their own
    carried: Callable[[], dict[str, Any]] = dict  # what terms and combinations carry at the start, by their names
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
    ema = average_targets(trainable, batch_stats) if averaging else {}
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
    # A term is named, then its gradient, before what follows from them, such as the sum of all or a cosine.
    terms = {term.name for update in program.updates for term in update.terms}
    order = np.argsort([0 if name in terms else 1 if name.startswith(LENGTH) else 2 for name in sorted(metrics)],
                       kind="stable").astype(np.int32)
    first = jnp.asarray(order)[jnp.argmin(finite[order])]
    bad = jnp.where(fresh, jnp.stack([step, first]), state.bad)
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
        targets = average_targets(state.trainable, state.batch_stats)
        state = state._replace(ema=moved_average(state.ema, targets, program.ema_decay, program.ema_warmup, step))
    if program.averages is not None:
        kept = program.averages(state.opt_state, state.trainable)
        state = state._replace(ema=average_targets(kept, state.batch_stats))
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

    def losses(side: Side, batches: Any, key: jax.Array, moving: Flat, edits: Any = None) -> tuple[Any, Any]:
        run = moving if program.noise is None else program.noise(moving, constants.initial, jax.random.fold_in(key, 2))
        now, then = (merged(program.peft, leaves) for leaves in ({**held, **run},
                                                                  {**constants.frozen, **constants.initial}))
        context, statistics = make_context(
            program.model, now, side.batch_stats, update.streams, batches, streams=program.streams, passages=passages,
            key=key, frozen_norms=frozen_norms, all_norms=program.norm_paths, joint=program.joint_forward,
            parameters={**state.trainable, **moving}, initial=constants.initial, statistics=constants.statistics,
            progress=step / program.total_steps, start=(then, constants.initial_stats), averaged=averaged,
            carried=side.carried, shared=program.shared, mixing=program.mixing, edits=edits)
        values, metrics, carried = [], {}, dict(side.carried)
        for term in update.terms:
            value, extra, kept = call_term(term, context)
            if masses[term.name] is not None:
                value, extra = scaled_by_mass((value, extra), labelled_mass(term, batches), masses[term.name],
                                              program.accumulate)
                metrics[term.name + STEPS] = (masses[term.name] > 0).astype(jnp.float32)
            metrics[term.name] = value
            metrics |= {f"{term.name}/{name}": jax.lax.stop_gradient(v) for name, v in extra.items()}
            values.append(value * term.weight(step, program.total_steps))
            carried |= {} if kept is None else {term.name: kept}
        return tuple(values), (metrics, Side(merge_statistics(side.batch_stats, statistics()), carried))

    before = Side(state.batch_stats, state.carried)
    grads, metrics, side = _gradients(program, update, losses, moving, held, before, batches, key)
    if update.affinity is not None:
        metrics |= affinity_metrics(update.affinity, update.combination, step, update.skip_bad,
                                    functools.partial(losses, before, batches, key), moving)
    if program.clip_norm is not None:
        norm = optax.tree.norm(grads)
        metrics["gradient_norm"] = norm
        scale = jnp.minimum(1.0, program.clip_norm / jnp.maximum(norm, 1e-12))
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    trainable, opt_state = apply_groups(program.optimizer(constants.rates), grads, state.opt_state, state.trainable,
                                        program.partition, groups, metrics["loss"])
    if update.combination.after_step is not None:
        values, _ = losses(before, batches, key, {path: trainable[path] for path in moving})
        side = _settled(update, side, before, jnp.stack(values), metrics)
    return state._replace(trainable=trainable, opt_state=opt_state, **side._asdict()), metrics


def _averaged_model(program: Program, constants: Constants, state: State) -> tuple[Flat, Any]:
    """Parameters and statistics of the moving average, all leaves."""
    params, batch_stats = averaged_variables(state)
    return merged(program.peft, {**constants.frozen, **state.trainable, **params}), batch_stats


def _settled(update: Update, side: Side, before: Side, values: jax.Array, metrics: Mapping[str, jax.Array]) -> Side:
    """What the combination carries, moved by the losses after the step; as it was, where a term was left out."""
    moved = update.combination.after_step(side.carried[update.slot], values)
    if update.skip_bad:
        skipped = sum(metrics[f"{term.name}/skipped"] for term in update.terms)
        sound = (skipped == 0) & jnp.isfinite(values).all()
        moved = jax.tree.map(lambda new, old: jnp.where(sound, new, old), moved, before.carried[update.slot])
    return side._replace(carried={**side.carried, update.slot: moved})


def _gradients(program: Program, update: Update, losses: Callable, moving: Flat, held: Flat, side: Side,
               batches: Mapping[str, Any], key: jax.Array) -> tuple[Flat, dict[str, jax.Array], Side]:
    """Gradients and metrics, averaged over micro-batches where `accumulate` is above 1, and what moved beside."""
    combination, slot = update.combination, update.slot

    def plain(side: Side, batches: Any, key: jax.Array) -> tuple[Flat, dict[str, jax.Array], Side]:
        return plain_gradients(combination, functools.partial(losses, side, batches, key), moving, held, slot, side,
                               jax.random.fold_in(key, 1), update.skip_bad)

    if not combination.rules_gradients:
        return _averaged_over(program, plain, side, batches, key)

    def tasks(side: Side, batches: Any, key: jax.Array) -> tuple[TaskGradients, dict[str, jax.Array], Side]:
        found, (metrics, moved) = task_gradients(functools.partial(losses, side, batches, key), moving, combination,
                                                 update.gradients_of, update.skip_bad)
        return found, metrics, moved

    def ahead(direction: Flat, weights: jax.Array) -> Flat:
        """The gradient of the weighted losses at the parameters less the direction, with respect to its leaves."""
        other = {**batches, **{name: batches[instead] for name, instead in update.lookahead.items()}}

        def total(leaves: Flat) -> jax.Array:
            return weights @ jnp.stack(losses(side, other, jax.random.fold_in(key, 3), {**moving, **leaves})[0])

        return jax.grad(total)({path: moving[path] - change for path, change in direction.items()})

    rule_key, carried = jax.random.fold_in(key, 1), side.carried.get(slot)
    if update.gradients_of in ("shared", "parameters"):
        found, metrics, new = _averaged_over(program, tasks, side, batches, key)
        taken = ruled(combination, found, carried, rule_key, ahead)
    else:
        found, taken, (metrics, new) = through_tap(functools.partial(losses, side, batches, key), moving, combination,
                                                   update.gradients_of, carried, rule_key, update.skip_bad)
    new = with_carried(new, slot, taken.carried)
    metrics = {**metrics, **taken.metrics, "loss": jnp.sum(jnp.where(found.present, found.values, 0.0))}
    if update.skip_bad:
        metrics, new = spared(combination.names, found.present, metrics, new, side, slot)
    return {**taken.together, **taken.own}, metrics, new


def _averaged_over(program: Program, one: Callable, side: Side, batches: Mapping[str, Any],
                   key: jax.Array) -> tuple[Any, dict[str, jax.Array], Side]:
    """`one` (side, batches, key -> what is averaged, metrics, side) over micro-batches in turn."""
    count = program.accumulate
    if count == 1:
        return one(side, batches, key)
    parts = jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batches)
    # Every micro-batch is split over all devices; as they are cut, one would lie on few of them.
    parts = {name: shard_batch(program.mesh, part, axis=1) for name, part in parts.items()}

    def body(carry: Any, number: jax.Array) -> tuple[Any, None]:
        found, metrics, side = carry
        part = jax.tree.map(lambda x: x[number], parts)
        new, extra, side = one(side, part, jax.random.fold_in(key, number))
        return (*jax.tree.map(_add_share(count), (found, metrics), (new, extra)), side), None

    shapes = jax.eval_shape(one, side, jax.tree.map(lambda x: x[0], parts), key)
    begun = jax.tree.map(lambda s: jnp.full(s.shape, s.dtype == bool, s.dtype), (shapes[0], shapes[1]))
    (found, metrics, side), _ = jax.lax.scan(body, (*begun, side), jnp.arange(count))
    return found, metrics, side


def _add_share(count: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A running mean of `count` parts; flags hold where they held in all."""
    return lambda a, b: a & b if a.dtype == bool else a + b / count
