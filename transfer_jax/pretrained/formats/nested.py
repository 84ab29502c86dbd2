"""Nested dictionaries and lists out of a checkpoint as flat tensors and plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from transfer_jax.pretrained.formats.pickle_data import Name, Record
from transfer_jax.pretrained.formats.pickled_objects import NumpyArray, StridedTensor
from transfer_jax.pretrained.formats.tensor_file import DEEPEST, add_once, damaged, is_numeric, plain, shown

ROOT = "tensor"  # the name of a tensor that is the whole file
LONG_PATH = 64  # characters of a path that count as one more node


class Flattened:
    """Tensors and plain values of one nested structure, by path.

    Levels of dictionaries and lists are joined by '/', those of TorchScript modules by '.'. A list of plain values
    stays one value.
    """

    def __init__(self, tree: Any, where: str, most_nodes: int) -> None:
        self.where, self.nodes_left = where, most_nodes
        self.tensors: dict[str, np.ndarray] = {}
        self.metadata: dict[str, Any] = {}
        self._visit(tree, "", 0)

    def _visit(self, node: Any, path: str, depth: int) -> None:
        # A structure may contain itself, one list a billion times over, or a long name in front of many others.
        self.nodes_left -= 1 + len(path) // LONG_PATH
        if depth > DEEPEST or self.nodes_left < 0:
            raise damaged(self.where, "its dictionaries are nested without an end")
        if isinstance(node, (StridedTensor, NumpyArray, np.ndarray)):
            add_once(self.tensors, path or ROOT, self._array(node, path or ROOT), self.where)
        elif isinstance(node, Record):
            self._visit_all(node.attributes, path, "." if node.script else "/", depth)
        elif isinstance(node, dict):
            self._visit_all(node, path, "/", depth)
        elif isinstance(node, (list, tuple)) and not all(plain(item) for item in node):
            self._visit_all(dict(enumerate(node)), path, "/", depth)
        elif isinstance(node, (list, tuple, set, frozenset)):
            self.nodes_left -= len(node)
            self.metadata[path] = list(node)
        elif isinstance(node, Name):
            self.metadata[path] = node.full
        elif plain(node):
            self.metadata[path] = node

    def _visit_all(self, items: dict[Any, Any], path: str, joint: str, depth: int) -> None:
        for key, value in items.items():
            self._visit(value, f"{path}{joint}{key}" if path else str(key), depth + 1)

    def _array(self, node: Any, name: str) -> np.ndarray:
        array = node.array(self.where, name) if isinstance(node, StridedTensor) else getattr(node, "array", node)
        if array is None or not is_numeric(array.dtype):
            raise damaged(self.where, f"the array {shown(name)} holds no numbers")
        return array
