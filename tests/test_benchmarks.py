"""Benchmarks run, and their arithmetic is right; how fast we are is for them to tell."""

import argparse
import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from transfer_jax.training.chips import Chip, machine


def script(name):
    """A benchmark as a module."""
    path = Path(__file__).resolve().parent.parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


backbones, scaling = script("backbones"), script("scaling")


@pytest.mark.parametrize(("model", "step"), [
    ("mobilenet_v2", "full"), *(pytest.param(*case, marks=pytest.mark.thorough) for case in (
        ("vit_tiny", "frozen"), ("bert", "forward")))])
def test_our_side_runs(model, step):
    run = backbones.ours({"model": model, "step": step, "batch": 2, "size": 32, "dtype": "float32"})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(2)))


def test_the_summary_takes_ratios_round_by_round():
    def answer(elapsed):
        return {"elapsed": elapsed, "busy": 2 * elapsed, "memory": 100 * elapsed}

    row, = backbones.summary({"ours": [answer(1), answer(2), answer(4)], "torch": [answer(2), answer(2), answer(2)]})
    assert row[:2] == ["torch", "2000.0"] and row[2] == row[3] == "1.00 (0.50-2.00)" and row[5] == "2.00"
    assert backbones.quartiles([np.float64(3.0)]) == "3.00 (3.00-3.00)"


def test_the_least_that_a_mesh_sends():
    def layout(**mesh):
        return scaling.outline(mesh, 8)

    shapes = {"b/block0/mlp/fc1/kernel": jax.ShapeDtypeStruct((256, 1024), np.float32),
              "b/norm/scale": jax.ShapeDtypeStruct((256,), np.float32),
              "heads/h/kernel": jax.ShapeDtypeStruct((256, 16), np.float32)}
    kernel, scale, head = (4 * np.prod(leaf.shape) for leaf in shapes.values())
    everything = tuple(shapes)
    assert scaling.least(layout(data=8), shapes, everything) == scaling.Least(
        gradients=2 * 7 / 8 * (kernel + scale + head))
    assert scaling.least(layout(fsdp=8), shapes, everything) == scaling.Least(
        2 * 7 / 8 * (kernel + head), 7 / 8 * (kernel + head) + 2 * 7 / 8 * scale)
    assert scaling.least(layout(data=4, model=2), shapes, everything).gradients == 2 * 3 / 4 * (
        kernel / 2 + scale + head)
    assert scaling.least(layout(data=8), shapes, ("heads/h/kernel",)).total == 2 * 7 / 8 * head
    assert scaling.least_beside(layout(data=4, model=2), 3, 1000, 10) == scaling.Least(
        activations=4 * 3 * 2 * 1000 / 2, statistics=2 * 3 / 4 * 4 * 10 * 4)


def test_a_prediction_is_arithmetic_and_exchange():
    chip = Chip(memory=1e9, flops=1e12, bandwidth=1e12, link=1e9)
    found = scaling.predict(chip, flops=1e9, batch=8, utilisation=0.5, sent=0.7e9 * scaling.LINK_SHARE / 7)
    assert found.arithmetic == pytest.approx(0.048) and found.exchange == pytest.approx(0.1)
    assert found.hidden == pytest.approx(0.1) and found.exposed == pytest.approx(0.148)
    for target in scaling.TARGETS:  # eight devices hold what each of the target's does
        mesh, batch = scaling.stand_in(target)
        here, there = scaling.outline(mesh, 8).mesh.shape, scaling.outline(target.mesh, machine(target.machine)[1])
        assert batch == target.batch * here["data"] * here["fsdp"]
        assert all(here[axis] == there.mesh.shape[axis] for axis in ("fsdp", "model"))


def test_windows_of_training_with_and_without_saves(tmp_path):
    spec = scaling.experiment(str(tmp_path), {"kind": "lenet"}, {}, 8, 32, {"steps": 16}, log_every=2)
    blocked, plain, saved, size = scaling.windows(spec, tmp_path / "checkpoints", 2)
    assert len(plain) == len(saved) == 2 and len(blocked) == 2 and min(*plain, *saved, *blocked) > 0 and size > 1e5


def test_photographs_are_read_with_augmentation(tmp_path):
    scaling.photographs(tmp_path, 4)
    assert next(scaling.supply(str(tmp_path), 2))["image"].shape == (1, 32, 224, 224, 3)


def test_rules_for_gradients_are_compared_with_the_backward_passes_that_they_need():
    multitask = script("multitask")
    times = {name: np.full(3, ms) for name, ms in ((multitask.FORWARD, 1.0), (multitask.BACKWARD, 3.0), ("fixed", 4.0),
                                                   ("famo", 5.0), ("mgda", 10.0), ("auto_lambda", 11.0))}
    sides = {name: (None, 3.0 if name == "mgda" else 2.0) for name in times}
    found = {row[0]: row[1:] for row in multitask.rows(sides, times, tasks=3)}
    assert found["mgda"] == ("10.00", "2.50 (2.50-2.50)", "1.25 (1.25-1.25)", "1.50")  # 4 + 2 passes of 2
    assert found["famo"] == ("5.00", "1.25 (1.25-1.25)", "1.00 (1.00-1.00)", "1.00")  # 4 + a forward pass
    assert found["auto_lambda"][2] == "1.00 (1.00-1.00)"  # 4 + 2 passes of 2 + one of 3


def test_models_in_parallel_are_compared_with_one_after_the_other(tmp_path):
    parallel = script("parallel")
    given = argparse.Namespace(batch=2, number=2, network="small_cnn")
    compared = parallel.sides("same", tmp_path, given)
    times = parallel.measured(compared, rounds=1, steps=1)
    assert list(times) == [parallel.IN_TURN, "apart", "joined"] and min(map(min, times.values())) > 0
    steps = {lane.step for side in compared.values() for lanes in side.bundles for lane in lanes}
    alone, apart = (compared[name].memory() for name in (parallel.IN_TURN, "apart"))
    assert steps == {3} and 1.5 * alone < apart < 2.5 * alone  # two of a kind at once
    rows = parallel.rows({parallel.IN_TURN: np.array([2.0, 4.0]), "apart": np.array([1.0, 3.0])},
                         {parallel.IN_TURN: 2.0, "apart": 2.0}, {parallel.IN_TURN: 10**6, "apart": 2 * 10**6})
    assert rows[1] == ("apart", "2.0", "0.62 (0.56-0.69)", "2.0", "2.0", "2.00")
