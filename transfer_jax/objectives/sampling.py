"""Which task trains at each step: drawn beforehand from shares that follow from the sizes of the tasks' data.

The whole plan of a stage is a table made on the host: a pure function of seed, stage and shares. So a resumed run
continues it, streams from the device and from the host agree on it, and the compiled step only looks it up.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, bind
from transfer_jax.data import order
from transfer_jax.data.mixing import MIXTURES


class Plan(NamedTuple):
    """The choices of one seed.

    choices: int32 [T], the task of every step.
    turns: int32 [T, K], how many earlier steps have read each of K streams.
    """

    choices: np.ndarray
    turns: np.ndarray


def annealed(sizes: np.ndarray, names: Sequence[str], progress: np.ndarray, *, final: float = 0.2,
             epochs: int | None = None) -> np.ndarray:
    """p_i proportional to n_i^a with a going from 1, by size, to `final` (Stickland & Murray 2019, "BERT and PALs",
    annealed sampling: a = 1 - 0.8 (e - 1) / (E - 1) in epoch e of E).

    Args:
      progress: float64 [T], from 0 to 1 through the stage.
      epochs: E, the number of equal parts of the stage in each of which a is constant; None: it falls at every step.

    Returns:
      float64 [T, P].
    """
    del names
    if not 0 <= final <= 1 or (epochs is not None and epochs < 2):
        raise UserError(f"annealed sampling: final = {final}, epochs = {epochs} do not fit; final lies in [0, 1], and "
                        f"there are at least 2 epochs")
    if epochs is not None:
        progress = np.minimum(np.floor(progress * epochs), epochs - 1) / (epochs - 1)
    exponents = 1 - (1 - final) * progress
    powers = np.exp(exponents[:, None] * (np.log(sizes) - np.log(sizes.max())))
    return powers / powers.sum(axis=1, keepdims=True)


# Sizes [P], names [, progress [T]] -> shares [P] or [T, P].
SAMPLINGS = {**MIXTURES, "annealed": annealed}


def shares_over_time(sampling: Component, sizes: Sequence[int], names: Sequence[str], steps: int,
                     where: str) -> np.ndarray:
    """float64 [T, P]: the probability of every task at every step."""
    if not min(sizes):
        raise UserError(f"{where}: the task {names[list(sizes).index(0)]!r} has no labels in any of its streams")
    function = bind(SAMPLINGS, sampling, "kind of sampling", where, supplied=("sizes", "names", "progress"))
    given = {"sizes": np.asarray(sizes, np.float64), "names": names}
    if "progress" in inspect.signature(function).parameters:
        given["progress"] = np.arange(steps) / max(steps - 1, 1) if sampling.arguments.get("epochs") is None \
            else np.arange(steps) / max(steps, 1)
    return np.broadcast_to(function(**given), (steps, len(sizes)))


def draw_plan(shares: np.ndarray, reads: np.ndarray, seed: int) -> Plan:
    """Draws the task of every step, independently, by its shares.

    Args:
      shares: float64 [T, P].
      reads: bool [P, K], which streams each task reads.
      seed: of the member, stage and update together.
    """
    steps = np.arange(len(shares), dtype=np.uint32)
    drawn = order.hashed(np.uint32(seed), steps) / 2.0**32
    ends = np.cumsum(shares, axis=1)[:, :-1]
    choices = (drawn[:, None] >= ends).sum(axis=1).astype(np.int32)
    read = reads[choices].astype(np.int64)
    return Plan(choices, (np.cumsum(read, axis=0) - read).astype(np.int32))
