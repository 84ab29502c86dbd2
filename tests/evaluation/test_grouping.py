"""Groups of tasks against all partitions, and against all choices of overlapping groups."""

import itertools

import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation.grouping import best_groups, onto


def partitions(tasks):
    """All partitions of a list."""
    if not tasks:
        yield []
        return
    first, *rest = tasks
    for found in partitions(rest):
        yield [[first], *found]
        for i, block in enumerate(found):
            yield [*found[:i], [first, *block], *found[i + 1:]]


def drawn(seed, tasks):
    return np.random.default_rng(seed).normal(0.1, 1.0, (tasks, tasks))


@pytest.mark.parametrize("tasks", [1, 2, 4, 6])
def test_the_best_partition_is_that_of_enumeration(tasks):
    for seed, most in itertools.product(range(4), range(1, tasks + 1)):
        affinity = drawn(seed, tasks)
        sums = {tuple(sorted(tuple(sorted(block)) for block in found)):
                sum(onto(affinity, tuple(block), task) for block in found for task in block)
                for found in partitions(list(range(tasks))) if len(found) <= most}
        chosen = best_groups(affinity, most)
        assert tuple(sorted(chosen.groups)) == max(sums, key=sums.get) and chosen.answers == chosen.groups
        assert chosen.affinity == pytest.approx(max(sums.values()))


def test_overlapping_groups_are_the_best_of_all_choices_and_never_worse_than_a_partition():
    subsets = [found for size in range(1, 5) for found in itertools.combinations(range(4), size)]
    better = 0
    for seed, most in itertools.product(range(6), range(1, 4)):
        affinity = drawn(seed, 4)
        best = max(sum(max(onto(affinity, group, task) for group in chosen if task in group) for task in range(4))
                   for count in range(1, most + 1) for chosen in itertools.combinations(subsets, count)
                   if set().union(*chosen) == set(range(4)))
        found, apart = best_groups(affinity, most, overlapping=True), best_groups(affinity, most)
        assert found.affinity == pytest.approx(best) and len(found.groups) <= most
        assert sorted(task for own in found.answers for task in own) == list(range(4))
        assert found.affinity == pytest.approx(sum(onto(affinity, group, task) for group, own in
                                                   zip(found.groups, found.answers, strict=True) for task in own))
        assert found.affinity >= apart.affinity - 1e-9
        better += found.affinity > apart.affinity + 1e-6
    assert better


def test_who_helps_nobody_stays_alone_and_equal_choices_take_fewer_networks():
    affinity = np.full((4, 4), -0.1)
    assert sorted(best_groups(affinity, 4).groups) == [(0,), (1,), (2,), (3,)]
    assert best_groups(affinity, 1).groups == ((0, 1, 2, 3),)
    affinity[:2, :2] = affinity[2:, 2:] = 0.2
    assert sorted(best_groups(affinity, 4).groups) == [(0, 1), (2, 3)]
    assert best_groups(np.zeros((3, 3)), 3).groups == ((0, 1, 2),)


def test_what_cannot_be_grouped_is_told():
    for affinity, most, words in ((np.zeros((11, 11)), 2, "11 tasks are too many"), (np.zeros((2, 3)), 1, "square"),
                                  (np.full((2, 2), np.nan), 1, "finite"), (np.zeros((2, 2)), 0, "at least one")):
        with pytest.raises(UserError, match=words):
            best_groups(affinity, most)
