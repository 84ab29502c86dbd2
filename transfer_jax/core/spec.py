"""Strict specifications: every config value has a declared type, and an unknown key is an error.

A `Spec` is a frozen record built from a plain mapping (an `ml_collections.ConfigDict` for our users). A `Component`
is a mapping `{kind: name, ...arguments}` whose arguments belong to the registered function of that name: the
function's own signature is the schema, so a method's parameters are declared once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ml_collections
import pydantic

from transfer_jax.core.errors import UserError, unknown

S = TypeVar("S", bound="Spec")


class Spec(pydantic.BaseModel):
    """A frozen, typed, strict record. Build it from untrusted mappings with `build`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class Component(Spec):
    """`{kind: name, **arguments}`: names an entry of a registry and the keyword arguments for it."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True, strict=True)
    kind: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def plain(value: Any) -> Any:
    """ConfigDicts and mappings -> dicts, lists -> tuples, recursively: the form that specs are built from."""
    if isinstance(value, ml_collections.ConfigDict):
        # Iterating a ConfigDict sorts its keys, but the order of stages is the order in which they were written.
        value = {key: value[key] for key in value._fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def build(cls: type[S], values: Mapping[str, Any], where: str = "config") -> S:
    """Checks `values` against the fields of `cls` and builds it; the first fault becomes one sentence."""
    try:
        return cls.model_validate(plain(values))
    except pydantic.ValidationError as error:
        raise _user_error(cls, error, where) from error


def _user_error(cls: type[Spec], error: pydantic.ValidationError, where: str) -> UserError:
    # A misspelt key also leaves its right name missing: the misspelling is the more helpful of the two.
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    parts = [str(part) for part in fault["loc"]]
    path = ".".join([where, *parts])
    if fault["type"] == "extra_forbidden":
        return unknown("key", parts[-1], _fields_at(cls, parts[:-1]), ".".join([where, *parts[:-1]]))
    if fault["type"] == "missing":
        return UserError(f"{path} is missing; give it a value")
    if isinstance(fault.get("ctx", {}).get("error"), ValueError):
        return UserError(f"{path}: {fault['ctx']['error']}")
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return UserError(f"{path} = {fault['input']!r} does not fit: {message}")


def _fields_at(cls: type[Spec], path: list[str]) -> list[str]:
    """Names of the fields of the spec found below `cls` at `path` (mapping keys in the path are skipped)."""
    current = cls
    for part in path:
        field = current.model_fields.get(part)
        if field is not None:
            current = _inner_spec(field.annotation) or current
    return list(current.model_fields)


def _inner_spec(annotation: Any) -> type[Spec] | None:
    if inspect.isclass(annotation) and issubclass(annotation, Spec):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _inner_spec(argument)
        if found is not None:
            return found
    return None


def lookup(registry: Mapping[str, Any], name: str, what: str, where: str = "") -> Any:
    """`registry[name]`, or an error with the nearest registered name."""
    if name not in registry:
        raise unknown(what, name, registry, where)
    return registry[name]


def bind(registry: Mapping[str, Callable], component: Component, what: str, where: str = "",
         supplied: tuple[str, ...] = ()) -> Callable:
    """The registered callable with the component's arguments bound; unknown or missing ones are errors.

    `supplied` names parameters that the engine passes itself at the call: they may not be set in the config.
    """
    function = lookup(registry, component.kind, what, where)
    check_arguments(function, component.arguments, f"{where or what} (kind {component.kind!r})", supplied)
    return functools.partial(function, **component.arguments)


def check_arguments(function: Callable, arguments: Mapping[str, Any], where: str,
                    supplied: tuple[str, ...] = ()) -> None:
    """Raises unless `function` takes every one of `arguments` and nothing it needs is left out."""
    parameters = inspect.signature(function).parameters
    options = [name for name, p in parameters.items()
               if name not in supplied and name not in ("parent", "name") and p.kind is not p.VAR_KEYWORD]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in arguments:
        if name not in options and not open_ended:
            raise unknown("argument", name, options, where)
    for name in options:
        parameter = parameters[name]
        if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY and name not in arguments:
            raise UserError(f"{where} needs the argument {name!r}")
