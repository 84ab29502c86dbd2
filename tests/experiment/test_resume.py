"""Stopped at any moment and started again, a run ends bit-identical to one that was never stopped."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from tiny_experiment import ROOT, arguments, command, config, read_json, same_leaves, write_config

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.training.writers import read_metrics

# BatchNorm, an average, dropout, a best record and two seeds: everything that a checkpoint must hold.
CHANGES = {
    "seeds": (0, 1), "checkpoint_every": 3, "model.backbones.backbone.norm": "batch",
    "model.heads.digits": {"kind": "mlp", "hidden": (8,), "dropout": 0.5},
    "stages.finetune.ema": {"decay": 0.9}, "stages.finetune.best": {"stream": "test"}, "stages.finetune.steps": 60,
    "stages.finetune.eval_every": 20, "stages.finetune.init": "pretrain", "stages.pretrain.steps": 30,
}
STAGES = ("pretrain", "finetune")


@pytest.fixture(scope="module", autouse=True)
def compilation(compilation_for_bits):
    """Bits are compared."""


def without_head(values):
    """Two stages are enough here."""
    return {**values, "stages": {stage: values["stages"][stage] for stage in STAGES}}


def left_behind(workdir):
    """(checkpoint trees, bytes of the metrics, results, seedless predictions) of a finished run."""
    run = Workdir(workdir)
    trees = [run.checkpoints(stage).restore()[:2] for stage in STAGES]
    return trees, (workdir / "metrics.jsonl").read_bytes(), read_json(workdir / "results.json"), \
        (workdir / "model" / "parameters.safetensors").read_bytes()


def assert_same_end(workdir, reference):
    found, expected = left_behind(workdir), left_behind(reference)
    for stage, (step, tree), (other_step, other) in zip(STAGES, found[0], expected[0], strict=True):
        assert step == other_step and same_leaves(tree, other), stage
    assert found[1] == expected[1]
    assert found[2] == expected[2]
    assert found[3] == expected[3]


@pytest.fixture(scope="module")
def setting(tmp_path_factory, digits_file):
    """(config file, workdir of a run that was never stopped)."""
    folder = tmp_path_factory.mktemp("resume")
    path = write_config(folder, without_head(config(digits_file, CHANGES)))
    done = command("train", "--config", path, "--workdir", folder / "whole", "--quiet")
    assert done.returncode == 0, done.stderr
    return path, folder / "whole"


def begin(path, workdir):
    return subprocess.Popen(arguments("train", "--config", path, "--workdir", workdir, "--quiet"), cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process, happened, seconds=120):
    """Waits until `happened()`; True if it did before the process ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if happened():
            return True
        time.sleep(0.0005)
    return False


def stop(process, number):
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def visible(workdir, stage):
    return Workdir(workdir).checkpoints(stage).steps()


def writing(workdir, stage):
    folder = workdir / "checkpoints" / stage
    return folder.is_dir() and any(name.startswith(".writing") for name in os.listdir(folder))


def test_killed_again_and_again_also_while_saving(setting, tmp_path):
    path, whole = setting
    moments = (lambda: writing(tmp_path, "pretrain"),
               lambda: writing(tmp_path, "finetune") and len(visible(tmp_path, "finetune")) > 1)
    for moment in moments:
        process = begin(path, tmp_path)
        assert wait_for(process, moment), process.communicate()[1]
        assert stop(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert set(read_json(tmp_path / "stages.json")) == {"pretrain"}
    # The newest checkpoint is damaged on top of it: the one before serves.
    (tmp_path / "checkpoints" / "finetune" / str(visible(tmp_path, "finetune")[-1]) / "manifest.json").unlink()
    done = command("train", "--config", path, "--workdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is damaged (no manifest); using the one before it" in " ".join((done.stdout + done.stderr).split())
    assert_same_end(tmp_path, whole)


def test_a_polite_stop_saves_first_and_loses_nothing(setting, tmp_path):
    path, whole = setting
    stops = (("pretrain", 30, signal.SIGTERM, 0), ("finetune", 60, signal.SIGINT, 130))
    for stage, total, number, code in stops:
        process = begin(path, tmp_path)
        assert wait_for(process, lambda stage=stage: bool(visible(tmp_path, stage))), process.communicate()[1]
        began = time.monotonic()
        returned, _, err = stop(process, number)
        assert time.monotonic() - began < 20
        assert returned == code, err
        assert err.splitlines()[-1] == f"stopped by {number.name}; everything is saved, the same command continues"
        step = visible(tmp_path, stage)[-1]
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert sum(f'"{stage}"' in line and '"train"' in line for line in lines) == step < total
    done = command("train", "--config", path, "--workdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"finetune: continuing after step {step}" in done.stdout + done.stderr
    assert_same_end(tmp_path, whole)


def test_a_finished_run_trains_nothing_again(setting):
    path, whole = setting
    before = left_behind(whole)[1:]
    times = {file: file.stat().st_mtime_ns for file in (whole / "checkpoints").rglob("*") if file.is_file()}
    done = command("train", "--config", path, "--workdir", whole)
    assert done.returncode == 0 and left_behind(whole)[1:] == before
    assert times == {file: file.stat().st_mtime_ns for file in (whole / "checkpoints").rglob("*") if file.is_file()}


def test_a_changed_config_is_refused_with_the_difference_unless_allowed(setting, digits_file):
    path, whole = setting
    flags = ("--config", path, "--workdir", whole, "--quiet", "--config.stages.finetune.lr=0.5")
    refused = command("train", *flags)
    assert refused.returncode == 2
    assert "stages.finetune.lr: 0.001 -> 0.5" in refused.stderr and "--allow_config_change" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert read_json(whole / "config.json")["stages"]["finetune"]["lr"] == 0.001
    allowed = command("train", *flags, "--allow_config_change")
    assert allowed.returncode == 0, allowed.stderr
    assert read_json(whole / "config.json")["stages"]["finetune"]["lr"] == 0.5
    values = config(digits_file, {**CHANGES, "stages.finetune.lr": 0.5, "checkpoint_every": 7, "keep_checkpoints": 1})
    Workdir(whole).open(build(ExperimentSpec, without_head(values)), allow_config_change=False)  # changes no result
    with pytest.raises(UserError, match="seeds"):
        Workdir(whole).open(build(ExperimentSpec, without_head({**values, "seeds": (1, 0)})), False)


def test_the_metrics_of_a_whole_run_are_complete(setting):
    lines = read_metrics(setting[1])
    steps = {stage: [line["step"] for line in lines if (line["stage"], line["kind"]) == (stage, "train")]
             for stage in STAGES}
    assert steps == {"pretrain": list(range(1, 31)), "finetune": list(range(1, 61))}
    evaluated = [line["step"] for line in lines if (line["stage"], line["kind"]) == ("finetune", "eval")]
    assert evaluated[:2] == [20, 40] and set(evaluated[2:]) == {60}
    assert all(np.isfinite(values).all() for line in lines for values in line["metrics"].values())
