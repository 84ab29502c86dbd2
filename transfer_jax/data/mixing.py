"""How often each of several sources comes: shares from their sizes, and the places of an epoch that these give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component, bind

if TYPE_CHECKING:
    from transfer_jax.data.dataset import Dataset


def by_size(sizes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """p_i = n_i / sum n: every example as often as every other."""
    del names
    return sizes / sizes.sum()


def by_temperature(sizes: np.ndarray, names: Sequence[str], *, temperature: float) -> np.ndarray:
    """p_i = n_i^(1/T) / sum n^(1/T), T >= 1: by size at 1, equal parts as T grows (Devlin et al. 2018, multilingual
    BERT; Arivazhagan et al. 2019, section 4)."""
    del names
    if not temperature >= 1:
        raise UserError(f"temperature = {temperature} does not fit; give a number >= 1")
    powers = np.exp((np.log(sizes) - np.log(sizes.max())) / temperature)
    return powers / powers.sum()


def equally(sizes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """p_i = 1 / P."""
    del names
    return np.full(len(sizes), 1 / len(sizes))


def by_weights(sizes: np.ndarray, names: Sequence[str], *, weights: Mapping[str, float]) -> np.ndarray:
    """p_i = w_i / sum w; `weights` names every source."""
    for name in weights:
        if name not in names:
            raise unknown("source", name, names, "weights")
    absent = [name for name in names if name not in weights]
    if absent:
        raise UserError(f"weights say nothing of {', '.join(map(repr, absent))}; give each a number > 0")
    found = np.array([weights[name] for name in names], np.float64)
    if not (np.isfinite(found) & (found > 0)).all():
        raise UserError(f"weights = {dict(weights)} do not fit; give numbers > 0")
    return found / found.sum()


# Sizes [P], names -> shares float64 [P] that sum to 1.
MIXTURES = {"size": by_size, "temperature": by_temperature, "equal": equally, "weights": by_weights}


def places(shares: np.ndarray, total: int) -> np.ndarray:
    """int64 [P] that sum to `total` and differ from shares * total by less than 1: the largest remainders are rounded
    up (Hamilton's method), the first of equal ones."""
    exact = shares * total
    found = np.floor(exact + 1e-9).astype(np.int64)
    found[np.argsort(found - exact, kind="stable")[:total - found.sum()]] += 1
    return found


def mixture(mix: Component, dataset: Dataset, indices: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Examples of each part among the rows `indices` [S, n] of merged data, and its places in an epoch of n, int32
    [S, P] both.

    Raises:
      UserError: for data without parts, a part without an example, or one whose share of an epoch is less than a place.
    """
    if dataset.domains is None:
        raise UserError(f"{where}: 'mix' needs a data set of kind 'merge', whose parts it could mix; leave it out")
    names = dataset.domain_names
    if len(set(names)) < len(names):
        raise UserError(f"{where}: 'mix' has to tell the parts apart, but they are called {', '.join(names)}; give "
                        f"each its own 'domain'")
    sizes = np.stack([np.bincount(dataset.domains[rows], minlength=len(names)) for rows in indices])
    shares = np.zeros_like(sizes)
    for member, count in enumerate(sizes):
        if not count.all():
            raise UserError(f"{where}: the part {names[int(np.argmin(count))]!r} has no example left to mix; widen the "
                            f"selection or remove the part")
        bound = bind(MIXTURES, mix, "kind of mixture", f"{where}, mix", supplied=("sizes", "names"))
        shares[member] = places(bound(sizes=count.astype(np.float64), names=names), int(count.sum()))
        if not shares[member].all():
            raise UserError(f"{where}: the share of the part {names[int(np.argmin(shares[member]))]!r} is less than "
                            f"one example in an epoch of {count.sum()}; give it more")
    return sizes.astype(np.int32), shares.astype(np.int32)
