"""Trees of arrays as flat dictionaries of `a/b/c` paths, the form in which rules and tables speak of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {'backbone/conv1/kernel': leaf}, in the order of the tree. Empty sub-trees vanish."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """One nested dict with the leaves of all; a later tree wins where paths meet."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat.update(flatten(tree))
    return unflatten(flat)
