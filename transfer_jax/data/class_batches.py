"""Batches of P classes with K examples each, for losses that compare examples: any batch computed alone.

As in `order.py`, a batch is a function of (seed, step), so nothing is stored and a run resumes from its step number.
An epoch shows each class once, in shuffled order, and every class goes through its own examples, shuffled anew each
time, K on a visit. What P or K leave over waits for another shuffle: so no batch repeats a class or an example.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.data import order


def class_table(labels: np.ndarray, members: np.ndarray) -> dict[str, np.ndarray]:
    """Where the examples of each class stand in the rows of each member.

    Args:
      labels: int32, of all rows of the data set.
      members: int32 [S, n], the rows of every member.

    Returns:
      `places` int32 [S, n], positions in a member's rows, class after class; `starts` and `counts` int32 [S, C] of
      the classes that have examples.

    Raises:
      UserError: if the members have different numbers of classes.
    """
    places, starts, counts = [], [], []
    for rows in members:
        own = labels[rows]
        known = own >= 0
        # Examples whose class is not known stand behind all others, where no class points to.
        places.append(np.lexsort((own, ~known)).astype(np.int32))
        count = np.unique(own[known], return_counts=True)[1]
        counts.append(count.astype(np.int32))
        starts.append((np.cumsum(count) - count).astype(np.int32))
    if len({len(count) for count in counts}) > 1:
        raise UserError("the seeds of a stream with classes_per_batch see different numbers of classes; set split_seed")
    return {"places": np.stack(places), "starts": np.stack(starts), "counts": np.stack(counts)}


def draw(step: Any, classes_per_batch: int, batch: int, starts: Any, counts: Any, seed: Any, slots: Any,
         xp: ModuleType = np) -> Any:
    """Positions in `places` of the batch of `step`, int32, one per entry of `slots` (0 ... batch - 1).

    A class of fewer than K examples shows some of them more than once.
    """
    each, total = batch // classes_per_batch, len(starts)
    batches = total // classes_per_batch  # of an epoch
    step, slots = xp.asarray(step).astype(xp.uint32), xp.asarray(slots).astype(xp.uint32)
    epoch = step // xp.uint32(batches)
    offset = (step % xp.uint32(batches)) * xp.uint32(classes_per_batch) + slots // xp.uint32(each)
    chosen = order.permute(offset, epoch, total, order.hashed(seed, np.uint32(1), xp=xp), xp)
    count = counts[chosen].astype(xp.uint32)
    visits = xp.maximum(count // xp.uint32(each), xp.uint32(1))  # until the class is shuffled anew
    place = (epoch % visits) * xp.uint32(each) + slots % xp.uint32(each)
    own = order.hashed(seed, np.uint32(2), chosen, xp=xp)
    return starts[chosen] + order.permute(place % count, epoch // visits, count, own, xp)


def check(labels: np.ndarray | None, classes_per_batch: int, batch: int, members: np.ndarray, where: str) -> None:
    """Raises where such batches cannot be drawn."""
    if labels is None:
        raise UserError(f"{where}: classes_per_batch needs data with labels; remove it")
    if batch % classes_per_batch:
        raise UserError(f"{where}: batch_size {batch} is no multiple of classes_per_batch {classes_per_batch}; change "
                        f"one of them")
    own = labels[members[0]]
    found = len(np.unique(own[own >= 0]))
    if found < classes_per_batch:
        raise UserError(f"{where}: classes_per_batch is {classes_per_batch}, but the stream has {found} classes; lower "
                        f"it")
