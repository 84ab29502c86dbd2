"""Data sets that configs of other folders unpack, and the published networks that go with them."""

from __future__ import annotations

from pathlib import Path

from transfer_jax.core.config import load_module

_ablation = load_module(Path(__file__).resolve().parents[1] / "ablations" / "transferability.py")
CLASSES, DATA, WEIGHTS, SOURCES = _ablation.CLASSES, _ablation.DATA, _ablation.WEIGHTS, _ablation.SOURCES
jpegs, pacs = _ablation.jpegs, _ablation.pacs
