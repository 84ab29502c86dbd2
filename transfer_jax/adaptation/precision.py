"""Double precision where the conditioning asks for it, whatever the caller's setting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P, R = ParamSpec("P"), TypeVar("R")


def in_double(function: Callable[P, R]) -> Callable[P, R]:
    """The function with jax's 64-bit types enabled inside; compiled programs of either precision are kept apart."""
    @functools.wraps(function)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> R:
        with jax.enable_x64(True):
            return function(*arguments, **named)

    return wrapped
