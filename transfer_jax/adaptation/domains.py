"""What goes into every method: features of two domains and labels, checked once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from transfer_jax.core.errors import UserError

Array = np.ndarray
UNKNOWN = -1  # the label of an example whose class is not given


class Problem(NamedTuple):
    """Two domains as a method sees them.

    Attributes:
        source: float64 [n_s, d].
        labels: int64 [n_s], places in the sorted classes of the source.
        target: float64 [n_t, d].
        target_labels: int64 [n_t], `UNKNOWN` where none is given.
        classify: (z [n, k], labels [n], query [m, k]) -> int [m]: the base classifier, for methods that label the
            target themselves.
        seed: of what a method draws.
    """

    source: Array
    labels: Array
    target: Array
    target_labels: Array
    classify: Callable[[Array, Array, Array], Array]
    seed: int = 0


def two_domains(source: Any, target: Any) -> tuple[Array, Array]:
    """Both as float64 [n, d]; a UserError for what no method can work with."""
    source, target = checked_features(source, "source"), checked_features(target, "target")
    if source.shape[1] != target.shape[1]:
        raise UserError(f"the source has {source.shape[1]} features and the target {target.shape[1]}; make both with "
                        f"the same model and taps")
    return source, target


def checked_features(x: Any, what: str) -> Array:
    """float64 [n, d], finite and not empty."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise UserError(f"the features of the {what} have shape {x.shape}; give one row an example: [n, d]")
    if not len(x) or not x.shape[1]:
        raise UserError(f"the {what} domain is empty (shape {x.shape}); give at least one example with one feature")
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise UserError(f"{len(bad)} examples of the {what} have features that are not finite, the first in row "
                        f"{bad[0]}; mend or remove them")
    return x


def checked_labels(labels: Any, count: int, what: str) -> Array:
    """[count] as given, of any type that sorts."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != count:
        raise UserError(f"the {what} has {count} examples but labels of shape {labels.shape}; give one label "
                        f"for each")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise UserError(f"labels of the {what} are not finite; mend or remove these examples")
    return labels


def classes_of(source_labels: Array, target_labels: Array | None = None) -> Array:
    """The sorted classes of the source.

    Args:
        target_labels: where known; a UserError if none of them is a class of the source.
    """
    classes = np.unique(source_labels)
    if len(classes) < 2:
        raise UserError(f"the source has the single class {classes.tolist()}; a classifier needs examples of two or "
                        f"more")
    if target_labels is not None and len(target_labels) and not np.isin(target_labels, classes).any():
        raise UserError(f"no class of the target ({_some(np.unique(target_labels))}) is one of the source "
                        f"({_some(classes)}); give domains that share classes, with the same names")
    return classes


def _some(values: Array, most: int = 5) -> str:
    return ", ".join(map(str, values[:most].tolist())) + (", ..." if len(values) > most else "")
