"""What each device holds is known before training, and what cannot fit is refused with advice."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from tiny_experiment import ROOT, command, config, write_config

from transfer_jax.core.errors import UserError
from transfer_jax.training.chips import CHIPS, machine
from transfer_jax.training.memory import Plan, describe, held, plan_row

PLAN = Plan("only", {"data": 1}, trainable=4_000_000, frozen=1000, optimizer=8_000_000, other=0, data=500,
            activations=2_000_000, limit=16_000_000)


def test_what_fits_is_described_and_passes():
    PLAN.check()
    assert describe(PLAN) == ("14 MB: 4 MB trainable parameters, 1 kB frozen ones, 8 MB optimizer state, 0.5 kB data, "
                              "2 MB activations")
    assert plan_row(PLAN)[-2:] == ("14 MB", "87.5 %")
    dataclasses.replace(PLAN, limit=None, activations=10**15).check()


@pytest.mark.parametrize(("change", "advice"), [
    ({"limit": 14_000_000}, "fsdp=N"), ({"activations": 20_000_000}, "accumulate=2"),
    ({"data": 30_000_000}, "storage='host'")])
def test_what_cannot_fit_is_refused_with_advice(change, advice):
    with pytest.raises(UserError, match=f"stage 'only' needs .* on each device, which has .*{advice}"):
        dataclasses.replace(PLAN, **change).check()


def test_machines_are_named_as_their_makers_do():
    assert machine("v5e-256") == (CHIPS["v5e"], 256) and machine("v5p-1024") == (CHIPS["v5p"], 512)
    assert machine("8") == (None, 8)
    for text, message in (("v5x-8", "unknown chip 'v5x'"), ("many", "names no machine"), ("v4-3", "counted in cores")):
        with pytest.raises(UserError, match=message):
            machine(text)


def test_held_counts_bytes():
    assert held({"a": jnp.zeros((3, 4)), "b": jax.ShapeDtypeStruct((5,), jnp.bfloat16)}) == 58


def test_a_plan_is_made_here_and_stops(tmp_path, digits_file):
    path = write_config(tmp_path, config(digits_file))
    done = command("train", "--config", path, "--plan")
    assert done.returncode == 0, done.stderr
    assert "tiny on one device" in done.stdout + done.stderr and list(tmp_path.iterdir()) == [path]
    assert "--workdir is missing" in command("train", "--config", path).stderr


def test_a_plan_for_a_machine_that_is_not_there(tmp_path, digits_file):
    changes = {"model.backbones.backbone": {"kind": "vit_tiny", "width": 192, "layers": 1, "heads": 4, "patch": 4}}
    values = config(digits_file, changes)
    values["stages"] = {"pretrain": values["stages"]["pretrain"]}
    path = write_config(tmp_path, values)
    done = subprocess.run([sys.executable, "-m", "transfer_jax.train", "--config", path, "--plan", "v5p-32",
                           "--config.mesh.fsdp=4"], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert "data 4 x fsdp 4" in text and "0.0 %" in text, text
