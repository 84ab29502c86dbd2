"""Config files: `FILE.py[:key=value,...]`, a Python module with `get_config(arg)` that returns a ConfigDict.

`parse_arg` is the mini language after the colon, `apply_overrides` the `--config.path.to.key=value` of the command
line. Neither decides what is valid: the specs do, so that a misspelling anywhere gets the same helpful answer.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import plain

ARG = "arg"  # in a run of a sweep


def load_module(path: str | Path) -> ModuleType:
    """Imports a config file by its path."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"config file {str(path)!r} does not exist")
    spec = importlib.util.spec_from_file_location(f"transfer_jax_config_{path.stem}", path)
    if spec is None:
        raise UserError(f"config file {str(path)!r} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # a config may import a sibling
    try:
        with _named(path):
            _check_entries(path)
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def load_config(reference: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """`FILE.py[:args]` and overrides `path.to.key=value` -> the ConfigDict that the file's `get_config` makes."""
    path, _, arg = reference.partition(":")
    module = load_module(path)
    get_config = _function(module, "get_config", path)
    with _named(path):
        config = get_config(arg)
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise UserError(f"get_config of {path!r} gives {type(config).__name__}, and no ConfigDict")
    return apply_overrides(config, overrides)


def load_sweep(reference: str) -> list[dict[str, Any]]:
    """The runs that the file's `get_sweep(arg)` yields: each a mapping of override paths to values.

    The entry `ARG` is no path: it is what a run adds to the config's own argument (`with_arg`).
    """
    path, _, arg = reference.partition(":")
    get_sweep = _function(load_module(path), "get_sweep", path)
    with _named(path):
        runs = [dict(run) for run in get_sweep(arg)]
    if not runs:
        raise UserError(f"get_sweep of {path!r} yields no run")
    return runs


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Errors of a config file's own code become one sentence with the file and the line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config file {error.filename or str(path)!r}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if Path(frame.filename).resolve() == Path(path).resolve()]
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(f"config file {str(path)!r}{where}: {type(error).__name__}: {error}") from error


def _check_entries(path: Path) -> None:
    """Raises UserError for a dict display that gives a name twice: Python would keep the last and say nothing."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        first: dict[Any, ast.Constant] = {}
        for key in node.keys if isinstance(node, ast.Dict) else ():
            if not isinstance(key, ast.Constant):
                continue
            if key.value in first:
                raise UserError(f"config file {str(path)!r}, line {key.lineno}: {key.value!r} is given twice, first in "
                                f"line {first[key.value].lineno}; rename or remove one")
            first[key.value] = key


def with_arg(reference: str, arg: str) -> str:
    """`FILE.py[:args]` with further arguments; of one that is given twice the last counts."""
    path, _, first = reference.partition(":")
    joined = ",".join(filter(None, (first, arg)))
    return f"{path}:{joined}" if joined else path


def _function(module: ModuleType, name: str, path: str) -> Callable:
    function = getattr(module, name, None)
    if function is None:
        raise UserError(f"config file {path!r} has no function {name}(arg)")
    return function


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """`key=value,key=value` -> a ConfigDict of `defaults` with these values, cast to the defaults' types.

    A bare `key` switches a boolean on. Unknown keys and values of the wrong type are errors.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            raise unknown("config argument", key, defaults, f"{arg!r}")
        values[key] = _cast(key, text if equals else "True", defaults[key])
    return ml_collections.ConfigDict(values)


def _cast(key: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"config argument {key}={text!r} must be true or false")
        return text.lower() == "true"
    try:
        return text if isinstance(default, str) or default is None else type(default)(text)
    except ValueError as error:
        raise UserError(f"config argument {key}={text!r} must be of type {type(default).__name__}") from error


def apply_overrides(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """Sets `path.to.key=value` in a copy of the config; values are Python literals, anything else is a string."""
    values = plain(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r} has no value; write --config.{path}=VALUE")
        set_path(values, path, _literal(text))
    return ml_collections.ConfigDict(values)


def set_path(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets a nested entry in place. A list entry is named by its number; missing mappings on the way are made."""
    *parents, last = path.split(".")
    node: Any = values
    trail: list[tuple[Any, str]] = []
    for part in parents:
        trail.append((node, part))
        if isinstance(node, tuple):
            node = node[_position(node, part, path)]
        else:
            _check_mapping(node, part, path)
            node = node.setdefault(part, {})
    node = _replaced(node, last, value, path)
    for parent, part in reversed(trail):  # tuples are immutable: rebuild the way back
        node = _replaced(parent, part, node, path)


def _replaced(node: Any, key: str, value: Any, path: str) -> Any:
    if isinstance(node, tuple):
        position = _position(node, key, path)
        return node[:position] + (value,) + node[position + 1:]
    _check_mapping(node, key, path)
    node[key] = plain(value)
    return node


def _check_mapping(node: Any, key: str, path: str) -> None:
    if not isinstance(node, dict):
        raise UserError(f"override --config.{path}: {key!r} lies inside {node!r}, which has no entries")


def _position(node: tuple, part: str, path: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override --config.{path}: {part!r} is not the number of one of the {len(node)} entries")
    return int(part)


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `path: old -> new` for every leaf in which two configs differ."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        path, a, b = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{path}.")
        elif plain(a) != plain(b):
            lines.append(f"{path}: {a!r} -> {b!r}")
    return lines
