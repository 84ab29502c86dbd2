"""Our side of the benchmark of backbones runs; how fast is for the benchmark to tell."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "backbones.py"
SPEC = importlib.util.spec_from_file_location("backbones", PATH)
backbones = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(backbones)


@pytest.mark.parametrize(("model", "step"), [("vit_tiny", "frozen"), ("mobilenet_v2", "full"), ("bert", "forward")])
def test_our_side_runs(model, step):
    run = backbones.ours({"model": model, "step": step, "batch": 2, "size": 32, "dtype": "float32"})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(2)))


def test_the_summary_takes_ratios_round_by_round():
    def answer(elapsed):
        return {"elapsed": elapsed, "busy": 2 * elapsed, "memory": 100 * elapsed}

    row, = backbones.summary({"ours": [answer(1), answer(2), answer(4)], "torch": [answer(2), answer(2), answer(2)]})
    assert row[:2] == ["torch", "2000.0"] and row[2] == row[3] == "1.00 (0.50-2.00)" and row[5] == "2.00"
    assert backbones.quartiles([np.float64(3.0)]) == "3.00 (3.00-3.00)"
