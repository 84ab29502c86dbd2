"""The original frameworks as oracles: imported on demand, made usable without their compiled extras."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@functools.cache
def framework(name: str) -> ModuleType:
    """The module `torch`, `torchvision`, `timm`, `transformers`, `peft` or `keras`; skips the test without it."""
    if name in ("torchvision", "timm", "transformers", "peft"):
        _define_missing_operators()
    pytest.importorskip(name.split(".")[0], reason=f"compares with {name}, which is not installed here")
    return importlib.import_module(name)


@functools.cache
def _define_missing_operators() -> object:
    """torchvision without its compiled library fails at import unless the operators that it wraps are known."""
    torch = framework("torch")
    torch.set_num_threads(2)
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
