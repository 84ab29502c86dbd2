"""What a method that moves features leaves behind: how an example of either domain is mapped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from transfer_jax.adaptation.domains import Problem
from transfer_jax.core.errors import UserError

Array = np.ndarray


@dataclass(frozen=True)
class Mapping:
    """Features in a space that both domains share.

    Attributes:
        of_source, of_target: float64 [n, d] -> [n, k].
        notes: what a user should know, such as fewer dimensions than asked for.
        labels: int64 [n_t], where the method labels the target itself: its last labels.
    """

    of_source: Callable[[Array], Array]
    of_target: Callable[[Array], Array]
    notes: tuple[str, ...] = ()
    labels: Array | None = field(default=None, compare=False)


def affine(matrix: Array, center: Array, offset: Array | float = 0.0) -> Callable[[Array], Array]:
    """x -> (x - center) matrix + offset."""
    return lambda x: (x - center) @ matrix + offset


def identity(problem: Problem) -> Mapping:
    """No adaptation: features stay as they are."""
    return Mapping(lambda x: x, lambda x: x)


def augmentation(problem: Problem) -> Mapping:
    """Feature augmentation (Daume 2007): (x, x, 0) for the source and (x, 0, x) for the target, so that a classifier
    has weights that domains share and weights of their own. It is of use where some target labels are given."""
    notes = () if (problem.target_labels >= 0).any() else ("no target labels: the target's own weights stay zero",)
    return Mapping(lambda x: np.concatenate([x, x, np.zeros_like(x)], 1),
                   lambda x: np.concatenate([x, np.zeros_like(x), x], 1), notes)


def at_most(wanted: int, possible: int, method: str) -> tuple[int, tuple[str, ...]]:
    """The number of dimensions, and a note where there are fewer than wanted."""
    if wanted < 1:
        raise UserError(f"{method} with {wanted} dimensions; give 1 or more")
    return min(wanted, possible), () if wanted <= possible else (f"{possible} dimensions instead of {wanted}: the data "
                                                                 f"have no more",)
