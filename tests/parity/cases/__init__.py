"""Every network that is compared with its original: one module of cases per family."""

from __future__ import annotations

import importlib
import pkgutil

from tests.parity.harness import Case

CASES: dict[str, Case] = {}
FIRST: set[str] = set()  # one of the smallest members of every family
for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    FIRST.add(next(case.id for case in importlib.import_module(f"{__name__}.{_module}").CASES if case.smallest))
    for _case in importlib.import_module(f"{__name__}.{_module}").CASES:
        assert _case.id not in CASES, f"two cases are called {_case.id}"
        CASES[_case.id] = _case
