"""Backbones that read taps of others, through the whole engine; and what is wrong with inputs, named."""

import numpy as np
import pytest
from tiny_experiment import config, run

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
