"""Every mesh gives the same training, and each device holds its part only."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from tiny_experiment import ROOT

from transfer_jax.core.errors import UserError
from transfer_jax.core.mesh import AXES, make_mesh, mesh_sizes, own_slots, place_batch
from transfer_jax.training.sharding import Layout

MESHES = ("data", "fsdp", "model", "mixed")
# One of a kind by default, since each costs seconds of compilation; --all runs every stage on every mesh.
DEFAULT = {"cnn": ("data", "fsdp"), "vit": ("fsdp", "model"), "adversarial": ("mixed",), "multitask": ("data",),
           "ruled": ("fsdp",), "accumulated": ("mixed",), "frozen": ("fsdp",)}


@pytest.fixture(scope="module")
def runs(request, digits_file):
    """Stage -> mesh -> losses and bytes, from one process with eight devices."""
    wanted = dict.fromkeys(DEFAULT, MESHES) if request.config.getoption("--all") else DEFAULT
    given = json.dumps({name: ("one", *meshes) for name, meshes in wanted.items()})
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    done = subprocess.run([sys.executable, Path(__file__).with_name("sharded_stages.py"), digits_file, given],
                          capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", list(DEFAULT))
def test_losses_are_equal_on_every_mesh_over_twenty_steps(runs, name):
    one = np.array(runs[name]["one"]["loss"])
    assert one.shape[0] == 20 and np.ptp(one) > 1e-3
    tolerance = 2e-2 if name == "accumulated" else 1e-5  # bfloat16 keeps three digits
    for mesh, found in runs[name].items():
        np.testing.assert_allclose(found["loss"], one, rtol=tolerance, err_msg=mesh)
        assert found["begun"] == found["trainable"], "the state moved to other places"


def test_each_device_holds_its_part_only(runs):
    whole, parts = runs["vit"]["one"], runs["vit"]["fsdp"]
    for kind in ("trainable", "optimizer"):
        assert whole[kind] / 8 <= parts[kind] <= 1.1 * whole[kind] / 8
    assert runs["vit"]["model"]["trainable"] < 0.3 * whole["trainable"]  # four ways, but for norms and embeddings
    assert runs["cnn"]["data"]["trainable"] == runs["cnn"]["one"]["trainable"]
    assert runs["cnn"]["fsdp"]["trainable"] < 0.5 * runs["cnn"]["one"]["trainable"]


def test_frozen_parameters_may_lie_otherwise(runs):
    whole, parts = runs["frozen"]["one"], runs["frozen"]["fsdp"]
    assert parts["frozen"] == whole["frozen"] > 0 and parts["trainable"] < 0.2 * whole["trainable"]


def layout(rules=None, frozen=None, **sizes):
    shape = mesh_sizes(sizes, math.prod(sizes.values()))
    mesh = AbstractMesh(tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Layout(mesh, rules, frozen)


def specs(found, **shapes):
    tree = {path: jax.ShapeDtypeStruct((2, *shape), np.float32) for path, shape in shapes.items()}
    return {path: sharding.spec for path, sharding in found.params(tree).items()}


SHAPES = {"b/block0/attention/query/kernel": (256, 256), "b/block0/attention/out/kernel": (256, 256),
          "b/block0/mlp/fc1/bias": (1024,), "b/block0/norm1/scale": (256,), "b/odd/kernel": (81, 99),
          "b/conv/kernel": (3, 3, 64, 128)}


def test_the_shipped_rules_split_transformers_over_model_and_everything_large_over_fsdp():
    assert specs(layout(fsdp=4, model=2), **SHAPES) == {
        "b/block0/attention/query/kernel": P(None, "fsdp", "model"),
        "b/block0/attention/out/kernel": P(None, "model", "fsdp"), "b/block0/mlp/fc1/bias": P(None, "model"),
        "b/block0/norm1/scale": P(), "b/odd/kernel": P(), "b/conv/kernel": P(None, None, None, None, "fsdp")}
    assert set(specs(layout(data=8), **SHAPES).values()) == {P()}


def test_rules_of_a_config_decide_in_their_order():
    rules = ((".*/conv/.*", "tensor(-2)"), (".*norm.*", "replicate"), (".*", "fsdp"))
    found = specs(layout(rules, model=2, fsdp=4), **SHAPES)
    assert found["b/conv/kernel"] == P(None, None, None, "model", "fsdp")
    assert found["b/block0/attention/query/kernel"] == P(None, "fsdp", None)


@pytest.mark.parametrize(("rules", "message"), [
    (((".*", "split"),), "unknown tactic 'split'"),
    ((("nothing", "fsdp"), (".*", "fsdp")), "'nothing' -> 'fsdp' matches no parameter"),
    (((".*", "fsdp"), (".*conv.*", "replicate")), "never applies"),
    (((".*conv.*", "fsdp"),), "no rule covers 5 parameters"),
    ((("(", "fsdp"),), "not a regular expression"),
])
def test_rules_are_strict(rules, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(") if "(" in message else message):
        layout(rules, fsdp=2).check(list(SHAPES))


def test_a_dimension_that_does_not_divide_is_an_error_of_the_config():
    with pytest.raises(UserError, match=r"tensor\(-1\) does not fit 'b/odd/kernel' of shape \(81, 99\)"):
        specs(layout(((".*", "tensor(-1)"),), model=2), **SHAPES)


@pytest.mark.parametrize(("axes", "message"), [({"data": 3}, "does not fit 8 devices"), ({"dat": 8}, "unknown axis"),
                                               ({"data": -1, "fsdp": -1}, "at most one may be -1"),
                                               ({"data": -1, "model": 3}, "does not fit")])
def test_meshes_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(UserError, match=message):
        mesh_sizes(axes, 8)


def test_the_rest_of_the_devices_goes_to_the_free_axis():
    assert mesh_sizes({"data": -1, "model": 2}, 8) == {"data": 4, "fsdp": 1, "model": 2}
    assert mesh_sizes({"fsdp": 2}, 8) == {"data": 4, "fsdp": 2, "model": 1}
    assert mesh_sizes({"fsdp": -1}, 8) == {"data": 1, "fsdp": 8, "model": 1}
    assert mesh_sizes({"data": -1}, 1) == {"data": 1, "fsdp": 1, "model": 1}


def test_a_batch_comes_onto_the_mesh_as_it_is():
    mesh = make_mesh({"data": -1})
    batch = {"image": np.arange(24.0).reshape(2, 4, 3), "label": np.arange(8).reshape(2, 4)}
    assert own_slots(mesh, 4).tolist() == [0, 1, 2, 3]
    placed = place_batch(mesh, batch, 4)
    for name, value in batch.items():
        np.testing.assert_array_equal(placed[name], value)
