"""Reads a pickle as data: its instructions are followed on a stack of our own, nothing is imported and nothing called.

Names of classes and functions must be on a list that the caller gives; each maps to a function of ours that builds a
harmless value out of the arguments, or to None for a name that only stands for itself.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.tensor_file import MEBIBYTE, damaged, refused, shown

Constructor = Callable[..., Any]
MOST_COPIES = 16  # how often a byte of a pickle may pass through constructors


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that the pickle mentions, by its full name; `build` makes our stand-in for what it gives."""

    full: str
    build: Constructor | None = dataclasses.field(default=None, compare=False)


class Record:
    """An object of which only its attributes are kept."""

    def __init__(self, attributes: dict[str, Any] | None = None, script: bool = False) -> None:
        self.attributes = attributes or {}
        self.script = script  # a module of a TorchScript archive: its attributes are joined by '.'

    def set_state(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise ValueError("an object's attributes are not a dictionary by name")
        self.attributes.update(state)


class OrderedDict(dict):
    """Stand-in for `collections.OrderedDict`, whose own attributes (`_metadata` of a state dict) are left behind."""

    def set_state(self, state: Any) -> None:
        pass


def read_pickle(stream: BinaryIO, where: str, names: Mapping[str, Constructor | None],
                persistent: Constructor | None = None, script: bool = False) -> Any:
    """The value of the next pickle in `stream`, which is left right behind it.

    Args:
        where: what the error messages call this file.
        names: allowed classes and functions ('torch.FloatStorage').
        persistent: gives the value for a persistent id; None: there may be none.
        script: whether classes below `__torch__` (modules of TorchScript) are allowed.
    """
    machine = _Machine(where, names, persistent, script)
    try:
        for opcode, argument, machine.position in pickletools.genops(stream):
            machine.follow(opcode.name, argument)
    except UserError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError, RecursionError,
            MemoryError) as error:
        raise damaged(where, f"its pickle cannot be read ({shown(error)})") from error
    return machine.result()


class _Machine:
    """The stack, the memo and the instructions of the pickle language."""

    def __init__(self, where: str, names: Mapping[str, Constructor | None], persistent: Constructor | None,
                 script: bool) -> None:
        self.where, self.names, self.persistent, self.script = where, names, persistent, script
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.position = 0
        self.handled = 0  # items and bytes that constructors have been given so far
        self.finished = False

    def result(self) -> Any:
        if not self.finished or len(self.stack) != 1 or self.outer:
            raise damaged(self.where, "its pickle ends too early")
        return self.stack[0]

    def follow(self, opcode: str, argument: Any) -> None:
        if opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in EMPTY:
            self.stack.append(EMPTY[opcode]())
        elif opcode in ARGUMENTS:
            self.stack.append(argument)
        elif opcode in MEMORY:
            self._remember(opcode, argument)
        elif opcode in INSTRUCTIONS:
            INSTRUCTIONS[opcode](self, argument)
        elif opcode not in IGNORED:
            raise refused(self.where, f"its pickle uses the instruction {opcode}, which no file of parameters needs",
                          "it was not read")

    def _remember(self, opcode: str, argument: Any) -> None:
        if opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif "PUT" in opcode:
            self.memo[int(argument)] = self.stack[-1]
        else:
            self.stack.append(self.memo[int(argument)])

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def stop(self, _: Any) -> None:
        self.finished = True

    def pop(self, _: Any) -> None:
        self.stack.pop() if self.stack else self._marked()

    def pop_mark(self, _: Any) -> None:
        self._marked()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def tuple_of_last(self, size: int) -> None:
        items = self.stack[-size:]
        if len(items) != size:
            raise ValueError("a tuple lacks items")
        self.stack[-size:] = [tuple(items)]

    def marked_tuple(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(tuple(items))

    def marked_list(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(items)

    def marked_dict(self, _: Any) -> None:
        items = self._marked()
        self.stack.append({})
        self._set(items)

    def marked_frozenset(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(frozenset(_hashable(item) for item in items))

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        self._list().append(item)

    def appends(self, _: Any) -> None:
        items = self._marked()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise TypeError("something is appended to what is no list")
        return self.stack[-1]

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("keys and values do not go into a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _hashable(key) in target:
                raise ValueError(f"the key {shown(key if isinstance(key, str) else '...')} occurs twice")
            target[key] = value

    def add_items(self, _: Any) -> None:
        items = self._marked()
        if not isinstance(self.stack[-1], set):
            raise TypeError("something is added to what is no set")
        self.stack[-1].update(_hashable(item) for item in items)

    def name(self, argument: str) -> None:
        self.stack.append(self._allowed(argument.replace(" ", ".", 1)))

    def stacked_name(self, _: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            raise TypeError("the name of a class is no string")
        self.stack.append(self._allowed(f"{module}.{attribute}"))

    def _allowed(self, full: str) -> Name:
        if full in self.names:
            return Name(full, self.names[full])
        if self.script and full.startswith("__torch__."):
            return Name(full, lambda: Record(script=True))
        raise refused(self.where, f"it asks for {shown(full)}, which is not on the list of what a file of parameters "
                                  "may contain", "nothing was executed; save its tensors as safetensors where you "
                                                 "trust it")

    def construct(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or called.build is None or not isinstance(arguments, tuple):
            what = shown(called.full) if isinstance(called, Name) else "a value that is no function"
            raise refused(self.where, f"its pickle calls {what}, which no file of parameters needs",
                          "nothing was executed")
        self._charge(arguments)
        self.stack.append(called.build(*arguments))

    def set_state(self, _: Any) -> None:
        state = self.stack.pop()
        if not hasattr(self.stack[-1], "set_state"):
            raise TypeError("a plain value is given attributes")
        self._charge(state if isinstance(state, tuple) else (state,))
        self.stack[-1].set_state(state)

    def _charge(self, values: tuple[Any, ...]) -> None:
        # A short pickle could have one long list copied again and again.
        self.handled += sum(len(value) for value in values if hasattr(value, "__len__"))
        if self.handled > MOST_COPIES * self.position + MEBIBYTE:
            raise ValueError("it makes far more values than it has bytes for")

    def persistent_value(self, _: Any) -> None:
        if self.persistent is None:
            raise TypeError("it refers to something outside of itself")
        self.stack.append(self.persistent(self.stack.pop()))


def _hashable(key: Any) -> Any:
    # Hashing a tower of tuples recurses without a limit inside the interpreter, so keys stay flat, and short.
    if isinstance(key, KEYS):
        return key
    if isinstance(key, tuple) and len(key) <= LONGEST_KEY and all(isinstance(item, KEYS) for item in key):
        return key
    raise TypeError("a key is neither a number nor a string")


KEYS = (str, int, float, bytes, type(None), Name)
LONGEST_KEY = 32  # items of a tuple
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
ARGUMENTS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
             "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
             "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
MEMORY = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"}
IGNORED = {"PROTO", "FRAME"}
INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark, "STOP": _Machine.stop, "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate, "TUPLE": _Machine.marked_tuple, "LIST": _Machine.marked_list,
    "DICT": _Machine.marked_dict, "FROZENSET": _Machine.marked_frozenset, "APPEND": _Machine.append,
    "APPENDS": _Machine.appends, "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items, "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.stacked_name,
    "REDUCE": _Machine.construct, "NEWOBJ": _Machine.construct, "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.persistent_value,
    **{f"TUPLE{size}": lambda machine, _, size=size: machine.tuple_of_last(size) for size in (1, 2, 3)}}
