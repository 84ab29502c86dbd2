"""Gradients of one update: of the one loss that its combination makes, or of every term, combined by a rule.

Every term's gradient comes from one forward pass, linearised once: its linear part is transposed for each loss by
itself, so that a head's backward pass runs once and what a loss does not reach costs nothing. Rules see gradients of
what two or more terms reach (`gradients_of`); a leaf that one term alone reaches gets that term's gradient, and no
further copies of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.combining import LEARNED, Combination
from transfer_jax.objectives.gramian import gramian
from transfer_jax.training.state import Flat

LENGTH = "gradient_norm/"  # of a term's gradient: metrics of this name and the term's
MOST_PAIRS = 28  # of terms, whose cosines are metrics: 8 terms
Metrics = dict[str, jax.Array]
Edits = Callable[[str], Mapping[str, Callable[[jax.Array], jax.Array]]]  # stream -> functions of its taps


class Side(NamedTuple):
    """What moves beside the parameters, without a gradient: see `State`."""

    batch_stats: Any
    carried: dict[str, Any]


class Losses(Protocol):
    """The weighted losses of an update's terms, float32 scalars in their order, with metrics and what moved beside."""

    def __call__(self, moving: Flat, edits: Edits | None = None) -> tuple[tuple[jax.Array, ...],
                                                                          tuple[Metrics, Side]]: ...


class TaskGradients(NamedTuple):
    """Gradients of all terms.

    Attributes:
      values: float32 [T].
      rows: path -> [T, ...], of the leaves that a rule combines.
      own: of every term, path -> [...]: its gradient of the leaves that a rule does not combine.
      present: bool [T], which terms count.
    """

    values: jax.Array
    rows: Flat
    own: tuple[Flat, ...]
    present: jax.Array


class Taken(NamedTuple):
    """What a rule made of them: the gradient of what it combined and of all else, metrics, and what it carries on."""

    together: Flat
    own: Flat
    metrics: Metrics
    carried: Any


def plain_gradients(combination: Combination, losses: Losses, moving: Flat, held: Flat, slot: str, old: Side,
                    key: jax.Array, skip: bool) -> tuple[Flat, Metrics, Side]:
    """Gradient of the one loss that the combination makes, metrics, and what moved beside.

    Args:
      held: leaves that do not move.
      slot: where `Side.carried` holds what the combination carries.
      old: what the step began with.
      skip: a term whose loss or gradient is not finite is left out of the step. Then all terms' gradients are taken
        one by one, in a branch that does not run in other steps.
    """
    def total(moving: Flat) -> tuple[jax.Array, tuple[jax.Array, Metrics, Side]]:
        values, (metrics, side) = losses(moving)
        found, extra, carried = _combine(combination, values, {**held, **moving}, old.carried.get(slot), key)
        return found, (jnp.stack(values), {**metrics, **extra, "loss": found}, with_carried(side, slot, carried))

    def together() -> tuple[Flat, jax.Array, Metrics, Side]:
        (_, (values, metrics, side)), grads = jax.value_and_grad(total, has_aux=True)(moving)
        return grads, values, metrics, side

    grads, values, metrics, side = together()
    if not skip:
        return grads, metrics, side
    nothing = jnp.zeros(len(combination.names), jnp.float32)

    def one_by_one() -> tuple[Flat, Metrics, Side]:
        found, (metrics, side) = task_gradients(losses, moving, combination, "parameters", skip=True)
        stand = jnp.where(found.present, found.values, 1.0)

        def of_values(values: jax.Array, moving: Flat) -> tuple[jax.Array, tuple[Metrics, Any]]:
            total, extra, carried = _combine(combination, tuple(values), {**held, **moving}, old.carried.get(slot), key)
            return total, (extra, carried)

        (total, (extra, carried)), (slopes, learned) = jax.value_and_grad(of_values, (0, 1), has_aux=True)(
            stand, moving)
        weights = jnp.where(found.present, slopes, 0.0)
        absent = {f"{LEARNED}/{name}": ~here for name, here in zip(combination.names, found.present, strict=True)}
        grads = {path: jnp.tensordot(weights, rows, 1).astype(rows.dtype)
                 + jnp.where(absent.get(path, False), 0.0, learned[path]) for path, rows in found.rows.items()}
        loss = total - jnp.sum(jnp.where(found.present, 0.0, slopes * stand))
        metrics = {**metrics, **extra, "loss": jnp.where(found.present.any(), loss, jnp.nan)}
        side = with_carried(side, slot, carried)
        return grads, *spared(combination.names, found.present, metrics, side, old, slot)

    fine = jnp.isfinite(values).all() & _all_finite(grads)
    kept = {**metrics, **_skipped(combination.names, nothing)}
    return jax.lax.cond(fine, lambda: (grads, kept, side), one_by_one)


def task_gradients(losses: Losses, moving: Flat, combination: Combination, gradients_of: str,
                   skip: bool) -> tuple[TaskGradients, tuple[Metrics, Side]]:
    """The gradients of all terms with respect to leaves, and what `losses` gave beside; see `plain_gradients`."""
    values, linear, aux = jax.linearize(losses, moving, has_aux=True)
    pulled = _one_after_the_other([lambda leaves, i=i: linear(leaves)[i] for i in range(len(values))], moving)
    values, pulled, present = _counted(values, pulled, skip)
    own: tuple[Flat, ...] = tuple({} for _ in pulled)
    together = list(moving)
    if gradients_of == "shared" and len(pulled) > 1:
        reached = reach(linear, moving)
        together = [path for path, tasks in reached.items() if len(tasks) > 1]
        for path in moving:
            if path not in together:
                number = min(reached[path], default=0)
                own[number][path] = pulled[number][path]
        if not together:
            raise UserError(f"no parameter is reached by two of the terms {', '.join(combination.names)}, so there are "
                            f"no gradients to combine or compare; use combine=dict(kind='fixed') and no 'affinity'")
    rows = {path: jnp.stack([one[path] for one in pulled]) for path in together}
    return TaskGradients(values, rows, own, present), aux


def ruled(combination: Combination, found: TaskGradients, carried: Any, key: jax.Array,
          lookahead: Callable | None = None) -> Taken:
    """What the rule makes of the terms' gradients."""
    tasks = len(found.values)
    unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda rows: rows[0], found.rows))[1]
    matrix = jnp.concatenate([rows.reshape(tasks, -1) for rows in jax.tree.leaves(found.rows)], axis=1)
    gradient, extra, carried = combination(
        losses=jnp.where(found.present, found.values, 1.0), gradients=matrix, present=found.present, key=key,
        carried=carried, lookahead=lookahead and (lambda direction, weights: jax.flatten_util.ravel_pytree(
            lookahead(unravel(direction), weights))[0]))
    own: Flat = {}
    for name, part in zip(combination.names, found.own, strict=True):
        weight = extra[f"weight_{name}"] if combination.weighs_losses else 1.0
        own |= {path: own.get(path, 0.0) + (weight * leaf).astype(leaf.dtype) for path, leaf in part.items()}
    return Taken(unravel(gradient), own, {**measures(combination.names, matrix), **extra}, carried)


def measures(names: tuple[str, ...], matrix: jax.Array) -> Metrics:
    """Lengths of the terms' gradients [T, P], and the cosine of every pair."""
    of, count = gramian(matrix), len(names)
    found = {LENGTH + name: norm for name, norm in zip(names, of.norms, strict=True)}
    if count * (count - 1) // 2 <= MOST_PAIRS:
        found |= {f"cosine/{names[i]}/{names[j]}": of.cosines[i, j] for j in range(count) for i in range(j)}
    return found


def through_tap(losses: Losses, moving: Flat, combination: Combination, tap: str, carried: Any, key: jax.Array,
                skip: bool) -> tuple[TaskGradients, Taken, tuple[Metrics, Side]]:
    """As `task_gradients` and `ruled` together, with the gradients of the features `tap` in place of parameters'.

    The rule's result is pulled back through what makes the features, once (Sener & Koltun 2018, section 3.3: MGDA-UB);
    what comes after them gets the terms' plain gradients.
    """
    zeros = _features(losses, moving, tap)

    def cut(leaves: Flat, changes: Flat) -> tuple[tuple[tuple[jax.Array, ...], Flat], tuple[Metrics, Side]]:
        made: Flat = {}

        def edit(stream: str, x: jax.Array) -> jax.Array:
            made[stream] = x
            return jax.lax.stop_gradient(x) + changes[stream]

        values, aux = losses(leaves, lambda stream: {tap: functools.partial(edit, stream)})
        return (values, made), aux

    (values, _), linear, aux = jax.linearize(cut, moving, zeros, has_aux=True)
    pulled = _one_after_the_other([lambda both, i=i: linear(*both)[0][i] for i in range(len(values))], (moving, zeros))
    values, pulled, present = _counted(values, pulled, skip)
    features = jax.tree.map(lambda *parts: jnp.stack(parts), *(changes for _, changes in pulled))
    found = TaskGradients(values, features, tuple(leaves for leaves, _ in pulled), present)
    taken = ruled(combination, found, carried, key)
    before = jax.linear_transpose(lambda leaves: linear(leaves, zeros)[1], moving)(taken.together)[0]
    return found, taken._replace(together=jax.tree.map(jnp.add, before, taken.own), own={}), aux


def _features(losses: Losses, moving: Flat, tap: str) -> Flat:
    """Zeros like the features of the one stream that has them."""
    shapes: dict[str, Any] = {}
    jax.eval_shape(lambda leaves: losses(leaves, lambda stream: {tap: lambda x: shapes.setdefault(stream, x)})[0],
                   moving)
    if not shapes:
        raise UserError(f"gradients_of = {tap!r}: no stream of the update gives a tap of that name; name a tap of "
                        f"its backbone, or use 'shared' or 'parameters'")
    if len(shapes) > 1:
        raise UserError(f"gradients_of = {tap!r}: the terms read the streams {', '.join(shapes)}, whose features share "
                        f"no entry; use gradients_of='shared'")
    return {stream: jnp.zeros(x.shape, x.dtype) for stream, x in shapes.items()}


def _counted(values: tuple[jax.Array, ...], pulled: list[Any], skip: bool) -> tuple[jax.Array, list[Any], jax.Array]:
    """Losses [T], the terms' gradients, and which of them count; with `skip` the gradients of others are 0."""
    losses = jnp.stack(values)
    if not skip:
        return losses, pulled, jnp.ones(len(pulled), bool)
    present = jnp.isfinite(losses) & jnp.stack([_all_finite(one) for one in pulled])
    return losses, [jax.tree.map(lambda leaf, here=here: jnp.where(here, leaf, 0.0), one)
                    for one, here in zip(pulled, present, strict=True)], present


def reach(linear: Callable, moving: Flat) -> dict[str, frozenset[int]]:
    """Which outputs of a linear function of leaves each leaf reaches. A call counts as a whole: what goes in reaches
    all that comes out."""
    closed = jax.make_jaxpr(linear)(moving)
    paths = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(moving)]
    tasks: dict[Any, frozenset[int]] = {}
    for number, out in enumerate(closed.jaxpr.outvars):
        if not hasattr(out, "val"):  # a literal: this loss reaches nothing
            tasks[out] = tasks.get(out, frozenset()) | {number}
    for equation in reversed(closed.jaxpr.eqns):
        reached = frozenset().union(*(tasks.get(out, frozenset()) for out in equation.outvars))
        for given in equation.invars:
            if not hasattr(given, "val"):
                tasks[given] = tasks.get(given, frozenset()) | reached
    return {path: tasks.get(leaf, frozenset()) for path, leaf in zip(paths, closed.jaxpr.invars, strict=True)}


def spared(names: tuple[str, ...], present: jax.Array, metrics: Metrics, side: Side, old: Side,
           slot: str) -> tuple[Metrics, Side]:
    """Metrics and what moved beside, as they are where some terms are left out of the step.

    An absent term's value and metrics are 0, `<name>/skipped` is 1, and what it carries stays, as does what the
    combination carries; statistics of norms that are not finite stay. Without any present term all is as it came.
    """
    every, some = present.all(), present.any()

    def kept(fine: jax.Array, new: Any, before: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(fine | ~some, a, b), new, before)

    metrics = dict(metrics)
    for number, name in enumerate(names):
        for key in [key for key in metrics if key == name or key.startswith(f"{name}/")]:
            metrics[key] = jnp.where(present[number] | ~some, metrics[key], 0.0)
    carried = {name: kept(present[names.index(name)] if name in names else every, value, old.carried[name])
               for name, value in side.carried.items()}
    statistics = jax.tree.map(lambda new, before: jnp.where(jnp.isfinite(new) | every | ~some, new, before),
                              side.batch_stats, old.batch_stats)
    return {**metrics, **_skipped(names, ~present)}, Side(statistics, carried)


def _combine(combination: Combination, values: tuple[jax.Array, ...], parameters: Flat, carried: Any,
             key: jax.Array) -> tuple[jax.Array, Metrics, Any]:
    return combination(losses=dict(zip(combination.names, values, strict=True)), parameters=parameters, key=key,
                       carried=carried)


def with_carried(side: Side, slot: str, carried: Any) -> Side:
    """`side` with what a combination carries on (None: nothing)."""
    return side if carried is None else side._replace(carried={**side.carried, slot: carried})


def _one_after_the_other(linear: list[Callable], at: Any) -> list[Any]:
    """The gradients of linear functions to a scalar.

    On a CPU each waits for the one before. Else XLA:CPU runs their backward passes side by side, with the memory of all
    of them at once, which is slower, too, where that exceeds a cache.
    """
    found: list[Any] = []
    for one in linear:
        seed = jnp.ones((), jax.eval_shape(one, at).dtype)
        if found and jax.default_backend() == "cpu":
            seed = _after(found[-1], seed)
        found.append(jax.linear_transpose(one, at)(seed)[0])
    return found


def _after(tree: Any, value: jax.Array) -> jax.Array:
    """`value`, about 1, as it is, but not before `tree` is known.

    What is added lies below the last digit; compilers take out a barrier before they order the operations.
    """
    ends = [leaf.reshape(-1)[0] for leaf in jax.tree.leaves(tree) if leaf.size]
    return value + 1e-30 * sum(jnp.isnan(end).astype(value.dtype) for end in ends)


def _skipped(names: tuple[str, ...], absent: jax.Array) -> Metrics:
    return {f"{name}/skipped": value.astype(jnp.float32) for name, value in zip(names, absent, strict=True)}


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
