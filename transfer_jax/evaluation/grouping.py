"""Which tasks should share a network: the best groups for a matrix of affinities and a budget of networks.

As Fifty et al. (2021, "Efficiently identifying task groupings for multi-task learning") choose: the affinity of a group
onto one of its tasks is the mean of what the others in it do for it, and the groups are taken whose sum over tasks
is largest. A task alone counts 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from transfer_jax.core.errors import UserError

MOST_TASKS = 10


class Grouping(NamedTuple):
    """groups: tasks that are trained together, ascending. answers: of each group, the tasks that its network answers.
    affinity: the sum over tasks of their group's affinity onto them."""

    groups: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    affinity: float


def onto(affinity: np.ndarray, group: tuple[int, ...], task: int) -> float:
    """The affinity of a group onto one of its tasks: the mean over the others i of affinity[i, task]; alone 0."""
    others = [other for other in group if other != task]
    return float(np.mean([affinity[other, task] for other in others])) if others else 0.0


def best_groups(affinity: np.ndarray, most: int, overlapping: bool = False) -> Grouping:
    """The groups of largest affinity, exactly: by dynamic programming over sets of tasks.

    Of equal choices it takes fewer groups. With `overlapping` a task may train in several groups, as in the paper, and
    is answered by the one that answers it best: each set of answered tasks then takes the best group around it.

    Args:
      affinity: float [T, T], row i column j: what i does for j; the diagonal is not read.
      most: at most so many groups, >= 1.

    Raises:
      UserError: above 10 tasks, for which there are too many sets.
    """
    affinity = np.asarray(affinity, np.float64)
    tasks = len(affinity)
    if affinity.shape != (tasks, tasks) or tasks < 1 or not np.isfinite(affinity).all() or most < 1:
        raise UserError(f"grouping needs a square matrix of finite affinities and a budget of at least one network, "
                        f"not {affinity.shape} and {most}; are there affinities of all pairs of tasks?")
    if tasks > MOST_TASKS:
        raise UserError(f"the best groups of {tasks} tasks are too many to compare, {MOST_TASKS} are possible; leave "
                        f"some out, or join those that surely go together")
    values, trained = _blocks(affinity, overlapping)
    everything = 2 ** tasks - 1
    # best[g][s]: largest sum for the set s by at most g blocks, and the block that holds its lowest task.
    best = {0: (0.0, 0)}
    levels = [best]
    for _ in range(min(most, tasks)):
        before, best = levels[-1], {}
        for chosen in range(everything + 1):
            best[chosen] = _best_of(chosen, before, values)
        levels.append(best)
    return _read(levels, everything, trained, tasks)


def _best_of(chosen: int, before: dict[int, tuple[float, int]], values: np.ndarray) -> tuple[float, int]:
    """The largest sum for a set of tasks by one block more than `before` has, and that block."""
    found = before.get(chosen, (-np.inf, 0))
    lowest = chosen & -chosen
    rest = chosen ^ lowest
    part = rest
    while chosen:
        block = part | lowest
        left = before.get(chosen ^ block)
        if left is not None and values[block] + left[0] > found[0] + 1e-12:
            found = float(values[block] + left[0]), block
        if not part:
            break
        part = (part - 1) & rest
    return found


def _blocks(affinity: np.ndarray, overlapping: bool) -> tuple[np.ndarray, np.ndarray]:
    """For every set of tasks that one network answers (bits of its number): its affinity, and what trains it."""
    tasks = len(affinity)
    members = (np.arange(2 ** tasks)[:, None] >> np.arange(tasks)) & 1  # [sets, T]
    others = np.maximum(members.sum(1, keepdims=True) - 1, 1)
    gains = members * (members @ (affinity * (1 - np.eye(tasks)))) / others  # [sets, T]: onto each of its tasks
    values, trained = gains.sum(1), np.arange(2 ** tasks)
    if not overlapping:
        return values, trained
    for answered in range(1, 2 ** tasks):
        around = np.flatnonzero((np.arange(2 ** tasks) & answered) == answered)
        sums = gains[around] @ members[answered]
        winner = int(np.argmax(np.where(around == answered, sums + 1e-12, sums)))  # of equals the set itself
        values[answered], trained[answered] = sums[winner], around[winner]
    return values, trained


def _read(levels: list[dict[int, tuple[float, int]]], everything: int, trained: np.ndarray, tasks: int) -> Grouping:
    answers, left, level = [], everything, len(levels) - 1
    while left:
        while level > 1 and levels[level - 1].get(left) == levels[level][left]:
            level -= 1  # fewer blocks do as well
        block = levels[level][left][1]
        answers.append(block)
        left, level = left ^ block, level - 1

    def named(chosen: int) -> tuple[int, ...]:
        return tuple(task for task in range(tasks) if chosen >> task & 1)

    return Grouping(tuple(named(int(trained[block])) for block in answers), tuple(map(named, answers)),
                    levels[-1][everything][0])
