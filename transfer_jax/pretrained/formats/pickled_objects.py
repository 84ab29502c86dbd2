"""What a pickle of parameters may name, and our harmless stand-ins: arrays, tensors of torch, plain containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transfer_jax.pretrained.formats.pickle_data import Name, OrderedDict, Record
from transfer_jax.pretrained.formats.tensor_file import (
    EXTENDED,
    HIGHEST_RANK,
    array_of,
    count,
    damaged,
    elements_of,
    shown,
)

WIDTHS = {name: np.dtype(name) for name in (
    "float64", "float32", "float16", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint64", "uint32",
    "uint16", "uint8", "bool")} | EXTENDED
STORAGES = {"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "LongStorage": "int64",
            "BFloat16Storage": "bfloat16", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
            "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
            "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8"}
LARGEST_EXPANSION = 2**20  # elements that a tensor may have beyond its storage (strides of 0)


@dataclasses.dataclass(eq=False)
class Storage:
    """The flat memory that tensors of torch are views of; `data` comes when the file's storages are read."""

    key: str
    dtype: np.dtype
    elements: int
    order: str = "<"
    data: bytes | memoryview | None = None
    _read: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def values(self, dtype: np.dtype) -> np.ndarray:
        if dtype.name not in self._read:
            self._read[dtype.name] = elements_of(self.data, dtype, self.order)
        return self._read[dtype.name]


@dataclasses.dataclass(frozen=True)
class StoragePart:
    """A stretch of another storage, as old files describe it."""

    root: Storage
    start: int
    elements: int

    @property
    def dtype(self) -> np.dtype:
        return self.root.dtype

    def values(self, dtype: np.dtype) -> np.ndarray:
        values = self.root.values(dtype)
        if not 0 <= self.start <= self.start + self.elements <= len(values):
            raise ValueError("a part of a storage lies outside of it")
        return values[self.start:self.start + self.elements]


@dataclasses.dataclass(frozen=True)
class StridedTensor:
    """A tensor before its storage has been read."""

    storage: Storage | StoragePart
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def set_state(self, state: Any) -> None:
        """Attributes that someone hung on a tensor are left behind."""

    def array(self, where: str, name: str) -> np.ndarray:
        """The view of the storage, after a check that it lies within it."""
        values = self.storage.values(self.dtype)
        elements = count(self.shape, where, name)
        if len(self.strides) != len(self.shape) or any(type(step) is not int or step < 0 for step in self.strides):
            raise damaged(where, f"the tensor {shown(name)} has impossible strides")
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if self.offset < 0 or (elements and last >= len(values)):
            raise damaged(where, f"the tensor {shown(name)} reaches beyond its storage")
        if elements > max(len(values), LARGEST_EXPANSION):
            raise damaged(where, f"the tensor {shown(name)} is far larger than its storage")
        if not elements:
            return np.zeros(self.shape, self.dtype)
        return np.lib.stride_tricks.as_strided(values[self.offset:], self.shape,
                                               [step * self.dtype.itemsize for step in self.strides], writeable=False)


def _tensor(storage: Any, offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any) -> StridedTensor:
    if not isinstance(storage, (Storage, StoragePart)) or type(offset) is not int:
        raise TypeError("a tensor has no storage")
    if max(len(shape), len(strides)) > HIGHEST_RANK:
        raise ValueError("a tensor has an impossible shape")
    return StridedTensor(storage, offset, tuple(shape), tuple(strides), storage.dtype)


def _tensor_of_type(storage: Any, offset: int, shape: Sequence[int], strides: Sequence[int], grad: Any, hooks: Any,
                    dtype: Name, *_: Any) -> StridedTensor:
    tensor = _tensor(storage, offset, shape, strides)
    return dataclasses.replace(tensor, dtype=WIDTHS[dtype.full.removeprefix("torch.")])


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, StridedTensor):
        raise TypeError("a parameter holds no tensor")
    return data


def _rebuilt(function: Name, kind: Any, arguments: tuple[Any, ...], state: Any) -> Any:
    if not isinstance(function, Name) or function.build not in (_tensor, _tensor_of_type, _parameter):
        raise TypeError("a tensor is made by an unknown function")
    return function.build(*arguments)


class NumpyType:
    """Stand-in for a `numpy.dtype` under construction."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or code[:1] not in "biufcVSU" and code not in WIDTHS:
            raise TypeError("an array has a type that is no number")
        self.dtype = np.dtype(code)
        self.order = "<"

    def set_state(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def values(self, data: bytes, shape: Sequence[int], name: str) -> np.ndarray:
        if self.dtype.kind not in "biufc":
            raise TypeError("an array has a type that is no number")
        array_of(data, self.dtype, shape, "the pickle", name)
        return elements_of(data, self.dtype, self.order).reshape(tuple(shape))


class NumpyArray:
    """Stand-in for a `numpy.ndarray` under construction."""

    array: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        flat = kind.values(_bytes(data), shape, "an array")
        self.array = flat.reshape(tuple(shape)[::-1]).T if fortran else flat


def _bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))


def _numpy_scalar(kind: NumpyType, data: Any = b"") -> Any:
    return kind.values(_bytes(data), (), "a number").item()


def _numpy_buffer(data: Any, kind: NumpyType, shape: Sequence[int], order: str) -> NumpyArray:
    made = NumpyArray()
    made.set_state((1, shape, kind, order == "F", data))
    return made


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("text is encoded in an unexpected way")
    return text.encode("latin1")


def _items(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    def build(items: Sequence[Any] = ()) -> Any:
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, (str, int, float)) for item in items):
            raise TypeError("a collection holds more than numbers and strings")
        return kind(items)
    return build


def _dictionary(items: Sequence[Any] = (), *_: Any) -> OrderedDict:
    if isinstance(items, dict):
        return OrderedDict(items)
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], (str, int))
               for pair in items):
        raise TypeError("a dictionary has keys that are no names")
    return OrderedDict(items)


def _default_dictionary(factory: Any = None, items: Sequence[Any] = ()) -> OrderedDict:
    return _dictionary(items)


def _path(*parts: str) -> str:
    return "/".join(parts)


def _device(kind: str, index: int | None = None) -> str:
    # Only these types: the text of a tower of tuples would fill the memory.
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise TypeError("a device is described wrongly")
    return kind if index is None else f"{kind}:{index}"


def _first(value: Any, *_: Any) -> Any:
    return value


NUMPY = {f"{room}.{name}": build for room in ("numpy.core.multiarray", "numpy._core.multiarray") for name, build in (
    ("scalar", _numpy_scalar), ("_reconstruct", lambda *_: NumpyArray()))} | {
    "numpy.dtype": NumpyType, "numpy.ndarray": None, "_codecs.encode": _encode,
    "numpy.core.numeric._frombuffer": _numpy_buffer, "numpy._core.numeric._frombuffer": _numpy_buffer}
CONTAINERS = {"collections.OrderedDict": _dictionary, "collections.defaultdict": _default_dictionary,
              "collections.Counter": _dictionary, "argparse.Namespace": lambda *_: Record(),
              "pathlib.PosixPath": _path, "pathlib.WindowsPath": _path,
              **{f"{room}.{kind.__name__}": _items(kind) for room in ("builtins", "__builtin__")
                 for kind in (set, frozenset)},
              **{f"{room}.{name}": None for room in ("builtins", "__builtin__")
                 for name in ("list", "dict", "int", "float", "str", "bool")}}
TORCH = {f"{room}.{name}": None for room in ("torch", "torch.cuda", "torch.storage") for name in STORAGES} | {
    f"torch.{name}": None for name in WIDTHS} | {
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type, "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter, "torch._tensor._rebuild_from_type_v2": _rebuilt,
    "torch.nn.parameter.Parameter": _parameter, "torch.nn.parameter.Buffer": _parameter, "torch.Tensor": None,
    "torch.Size": lambda sizes=(): tuple(sizes), "torch.device": _device}
SCRIPT = {f"torch.jit._pickle.build_{kind}list": lambda items: list(items)
          for kind in ("int", "tensor", "double", "bool", "string")} | {
    "torch.jit._pickle.restore_type_tag": _first}
PLAIN_PICKLE = NUMPY | CONTAINERS
TORCH_PICKLE = PLAIN_PICKLE | TORCH
