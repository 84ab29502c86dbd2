"""Every network that is compared with its original: one module of cases per family."""

from __future__ import annotations

import importlib
import pkgutil

from tests.parity.harness import Case

CASES: dict[str, Case] = {}
FIRST: set[str] = set()  # one of the smallest members of every family
for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    _cases = importlib.import_module(f"{__name__}.{_module}").CASES
    FIRST.add(next(case.id for case in _cases if case.smallest))
    for _case in _cases:
        assert _case.id not in CASES, f"two cases are called {_case.id}"
        CASES[_case.id] = _case
