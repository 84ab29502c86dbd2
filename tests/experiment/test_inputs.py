"""Backbones that read taps of others, through the whole engine; and what is wrong with inputs, named."""

import numpy as np
import pytest
from tiny_experiment import config, run, single, trained

from transfer_jax.core.errors import UserError
from transfer_jax.core.inputs import FromTaps
from transfer_jax.core.spec import build
from transfer_jax.experiment.assembly import Assembly, in_order
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.training.checkpoint import Checkpoints

EXPERTS = {"kind": "multi_gate_experts", "tasks": ("digits", "other"), "experts": 2, "hidden": (8,)}
BEHIND = {"backbone": "image", "experts": "backbone/pooled"}


@pytest.fixture
def values(digits_file):
    """A network with experts behind it, and the head on what they give."""
    found = config(digits_file)
    found["model"]["backbones"]["experts"] = EXPERTS
    found["model"]["heads"]["digits"]["tap"] = "experts/digits"
    for stream in found["streams"].values():
        stream["inputs"] = BEHIND
    found["stages"] = {"pretrain": {**found["stages"]["pretrain"], "steps": 2}}
    return found


def test_experts_behind_a_network_train_are_scored_and_start_a_later_stage(values, tmp_path):
    values["stages"]["joint"] = {**values["stages"]["pretrain"], "init": "pretrain", "batch_norm": "joint"}
    run(values, tmp_path)
    first, last = (Checkpoints(tmp_path / "checkpoints" / name).restore()[1]["state"]["trainable"]
                   for name in ("pretrain", "joint"))
    moved = {path for path, leaf in last.items() if not np.array_equal(leaf, first[path])}
    assert {"experts/expert0_dense0/kernel", "experts/gate_digits/kernel"} <= moved
    assert any(path.startswith("backbone/") for path in moved)
    assert not any("gate_other" in path for path in moved)  # no task reads it


def test_all_ways_to_share_train_side_by_side(digits_file):
    """Two steps of a stage whose heads read stitched columns, attention and layered experts, each that of one task."""
    tasks = ("a", "b")
    parts = {"stitched": {"kind": "cross_stitch", "tasks": tasks, "at": ("stage1",),
                          "column": {"kind": "small_cnn", "widths": (3,), "norm": "batch"}},
             "attended": {"kind": "task_attention", "tasks": tasks, "stages": 1},
             "layered": {"kind": "progressive_experts", "tasks": tasks, "own": 1, "shared": 1, "levels": 1,
                         "hidden": (3,)}}
    heads = {part: {"kind": "linear", "tap": f"{part}/{tap}"} for part, tap in
             (("stitched", "a_pooled"), ("attended", "a"), ("layered", "a"))}
    inputs = {"backbone": "image", "stitched": "image", "attended": ("backbone/stage1",), "layered": "backbone/pooled"}
    terms = {part: {"kind": "task", "task": part, "stream": "train"} for part in parts}
    found = trained(single(digits_file, {"steps": 2, "objective": {"terms": terms}, "evaluate": {}}, {
        "model.backbones": {"backbone": {"kind": "small_cnn", "widths": (3,)}, **parts}, "model.heads": heads,
        "streams.train.inputs": inputs, "streams.test.inputs": inputs,
        "tasks": {part: {"kind": "classification", "head": part} for part in parts}}))
    before, after = found.before.trainable, found.after.trainable
    moved = {path for path in after if not np.array_equal(after[path], before[path])}
    assert {"stitched/stitch_stage1", "backbone/stage1_conv1/kernel", "attended/a1_h/kernel"} <= moved
    columns = [path for path in moved if path.startswith("stitched/columns/") and path.endswith("kernel")]
    assert columns and all((after[path] != before[path]).any((0, 2, 3, 4, 5)).all() for path in columns)  # both columns
    assert {"layered/level1_gate_a/kernel", "layered/level1_a_expert0_dense0/kernel"} <= moved
    assert not any(part in path for path in moved for part in ("attended/b", "level1_gate_b", "level1_b_"))


@pytest.mark.parametrize(("inputs", "words"), [
    ({"experts": "backbone/pooled", "backbone": "image"}, "reads taps of 'backbone', which is not named before it"),
    ({"backbone": "image", "expert": "backbone/pooled"}, "did you mean 'experts'"),
    ({"backbone": "image", "experts": ("missing",)}, "reads nothing at all")])
def test_inputs_that_do_not_fit_are_one_sentence(inputs, words, values):
    values["streams"]["train"]["inputs"] = inputs
    with pytest.raises(UserError, match=words):
        Assembly(build(ExperimentSpec, values))


def test_a_tap_that_the_network_lacks_is_named(values):
    for stream in values["streams"].values():
        stream["inputs"] = {"backbone": "image", "experts": "backbone/poled"}
    with pytest.raises(UserError, match="reads the tap 'backbone/poled', which no backbone before it gives"):
        _ = Assembly(build(ExperimentSpec, values)).variable_shapes


def test_backbones_come_behind_those_whose_taps_they_read():
    inputs = {"c": FromTaps(("b/x", "missing")), "b": FromTaps(("a/x",), True), "a": 1}
    assert list(in_order(inputs)) == ["a", "b", "c"]
    with pytest.raises(UserError, match="in a circle"):
        in_order({"a": FromTaps(("b/x",)), "b": FromTaps(("a/x",))})
