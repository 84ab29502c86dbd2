"""Which labels the tasks of a stage have, and the plan by which an update trains one task a step."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.objectives import COMBINATION_CARRIED, GRADIENT_RULES
from transfer_jax.objectives.sampling import draw_plan, shares_over_time
from transfer_jax.objectives.spec import UpdateSpec
from transfer_jax.objectives.wiring import Term
from transfer_jax.params.inserts import head_of
from transfer_jax.params.partition import Partition
from transfer_jax.training.step import choices_name, turns_name


def labelled_examples(stream: Any, kind: str) -> int:
    """How many examples of a stream (of its first seed) have labels of this kind."""
    if kind not in stream.example_shapes:
        return 0
    labels = stream.dataset.labels
    if f"known/{kind}" not in stream.example_shapes or kind != "label" or labels is None:
        return stream.size
    return int((labels[stream.indices[0]] >= 0).sum())


def check_labels(terms: Sequence[Term], streams: Mapping[str, Any], where: str) -> None:
    """Raises for a task that no stream of its terms has labels for, and for a term that cannot leave examples out."""
    for task in dict.fromkeys(term.spec.task for term in terms if term.spec.kind == "task"):
        own = [term for term in terms if term.spec.kind == "task" and term.spec.task == task]
        names = dict.fromkeys(term.spec.roles[role] for term in own for role in term.labelled_roles)
        if names and not any(labelled_examples(streams[name], own[0].label_key) for name in names):
            raise UserError(f"{where}.objective: the task {task!r} needs labels ({own[0].label_key!r}), but has none "
                            f"in any of its streams {', '.join(map(repr, names))}; name a labelled one (is any "
                            f"set to labelled=False?), or set the task's 'label'")
    for term in terms:
        for role in term.labelled_roles:
            partly = f"known/{term.label_key}" in streams[term.spec.roles[role]].example_shapes
            if partly and ("weights", role) not in [(quantity, own) for _, own, quantity in term.quantities]:
                raise UserError(f"{where}.objective.{term.name} (kind {term.spec.kind!r}) needs the label of every "
                                f"example, but some of stream {term.spec.roles[role]!r} have none; give it a stream of "
                                f"the labelled ones")


def by_task(update: UpdateSpec, terms: Sequence[Term], parts: Partition, inputs: Mapping[str, Sequence[str]],
            inserts: Mapping[str, Any], where: str) -> list[tuple[UpdateSpec, list[Term]]]:
    """What a step of each task alone does: its terms and those of no task, the combination of these, and the groups
    that they reach. `inputs`: stream -> the backbones that it feeds; `inserts`: see `Model`."""
    tasks = _tasks(terms)
    if len(tasks) < 2:
        raise UserError(f"{where}.sampling chooses among tasks, but the terms are of {len(tasks)}; leave it out, or "
                        f"give the terms their 'task'")
    if update.combine.kind in (*GRADIENT_RULES, *COMBINATION_CARRIED):
        raise UserError(f"{where}: with 'sampling' a step has the loss of one task, and {update.combine.kind!r} "
                        f"nothing to combine; use one of the two")
    found = []
    for task in tasks:
        own = [term for term in terms if term.spec.task in (task, None)]
        heads = {head for term in own for head in term.heads}
        reached = {f"heads/{head}/" for head in heads} | {"peft/"}
        streams = {stream for term in own for stream in term.spec.roles.values()}
        reached |= {f"{backbone}/" for stream in streams for backbone in inputs[stream]}
        reached |= {f"objective/log_variances/{term.name}" for term in own}
        groups = [group for group in (update.groups or parts.groups)
                  if any(path.startswith(tuple(reached)) and head_of(path, inserts) in (None, *heads)
                         for path, name in parts.group_of.items() if name == group)]
        names = {term.name for term in own}
        found.append((update.model_copy(update={
            "terms": {name: term for name, term in update.terms.items() if name in names}, "groups": tuple(groups),
            "combine": _of_terms(update.combine, names, set(update.terms)), "sampling": None}), own))
    return found


def make_plans(updates: Sequence[tuple[UpdateSpec, Sequence[Term]]], streams: Mapping[str, Any], steps: int, name: str,
               where: str) -> Callable[[tuple[int, ...]], dict[str, Any]]:
    """Seeds -> the choices of every sampled update and the turns of the streams that not every step reads, int32
    [S, T] each; see `Program.plans`."""
    sampled = [(number, update, terms) for number, (update, terms) in enumerate(updates) if update.sampling]
    always = {stream for update, terms in updates for term in terms for stream in term.spec.roles.values()
              if not (update.sampling and term.spec.task)}
    always |= {stream for update, _ in updates for stream in update.lookahead.values()}
    drawn = []
    for number, update, terms in sampled:
        tasks = _tasks(terms)
        read = {task: dict.fromkeys(stream for term in terms if term.spec.task == task
                                    for stream in term.spec.roles.values()) for task in tasks}
        sizes = [sum(labelled_examples(streams[stream], kind) for stream, kind in dict.fromkeys(
            (term.spec.roles[role], term.label_key) for term in terms if term.spec.task == task
            for role in term.labelled_roles)) for task in tasks]
        shares = shares_over_time(update.sampling, sizes, tasks, steps, f"{where}.sampling")
        drawn.append((number, tasks, read, shares))
    several = [stream for i, (_, _, read, _) in enumerate(drawn) for _, _, other, _ in drawn[:i]
               for stream in set().union(*read.values()) & set().union(*other.values())]
    if several:
        raise UserError(f"{where}: two updates sample tasks of the stream {several[0]!r}; give each its own stream")

    def plans(seeds: tuple[int, ...]) -> dict[str, Any]:
        tables: dict[str, Any] = {}
        for number, tasks, read, shares in drawn:
            own = [stream for stream in dict.fromkeys(s for names in read.values() for s in names)
                   if stream not in always]
            reads = np.array([[stream in read[task] for stream in own] for task in tasks], bool).reshape(len(tasks), -1)
            found = [draw_plan(shares, reads, zlib.crc32(f"{seed}/{name}/{number}/sampling".encode()))
                     for seed in seeds]
            tables[choices_name(number)] = np.stack([plan.choices for plan in found])
            tables |= {turns_name(stream): np.stack([plan.turns[:, column] for plan in found])
                       for column, stream in enumerate(own)}
        return tables

    return plans


def _tasks(terms: Sequence[Term]) -> list[str]:
    return list(dict.fromkeys(term.spec.task for term in terms if term.spec.task))


def _of_terms(combine: Component, names: set[str], every: set[str]) -> Component:
    """The combination with its options of terms, {term: ...}, reduced to `names`."""
    def reduced(value: Any) -> Any:
        if isinstance(value, Mapping) and set(value) <= every:
            return {name: item for name, item in value.items() if name in names}
        return value

    return Component(kind=combine.kind, **{key: reduced(value) for key, value in combine.arguments.items()})
