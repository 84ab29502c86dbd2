"""Ways of tuning in one real run: each trains, its result is what is scored, a stopped stage goes on bit for bit."""

import json
import shutil

import numpy as np
import pytest
import tiny_experiment
from tiny_experiment import same_leaves

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.results import stage_result
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.workdir import Workdir

FEW = {"partition": (("peft/.*", "low"), ("heads/.*", "head"), (".*", "frozen")), "groups": {"low": {}, "head": {}}}


def few(kind, **arguments):
    return {**FEW, "lr": 0.02, "peft": {"few": {"kind": kind, "targets": ("backbone/.*conv.*",), **arguments}}}


WAYS = {
    "schedule_free": {"optimizer": {"kind": "schedule_free_adamw"}, "warmup_steps": 2},
    "plateau": {"schedule": {"kind": "plateau", "every": 1, "patience": 1}, "optimizer": {"kind": "sgd"}},
    "prodigy": {"optimizer": {"kind": "prodigy"}, "lr": 1.0},
    "one_cycle": {"schedule": {"kind": "one_cycle"}, **few("ssf")},
    "ia3": few("ia3"),
    "dora": few("dora", rank=2),
}


def config(digits_file):
    values = tiny_experiment.config(digits_file)
    first = values["stages"]["pretrain"]
    values["stages"] = {"pretrain": first, **{name: {**first, "init": "pretrain", **way} for name, way in WAYS.items()}}
    return values


def test_every_way_trains_and_goes_on_after_a_stop(digits_file, tmp_path):
    values = config(digits_file)
    run = tiny_experiment.run(values, tmp_path)
    before = run.result("pretrain", "last")[0]
    whole = {name: run.result(name, "last")[0] for name in WAYS}
    for name, params in whole.items():
        assert set(params) == set(before), name
        assert any((params[path] != before[path]).any() for path in params if path.startswith("backbone")), name
        shutil.rmtree(tmp_path / "checkpoints" / name / "6")  # back to step 4
        (tmp_path / "stages" / f"{name}.json").unlink()
    again = tiny_experiment.run(values, tmp_path)
    for name, params in whole.items():
        assert same_leaves(again.result(name, "last")[0], params), name
    # The result of a schedule-free stage is the average, which is not where its gradients were taken.
    workdir = Workdir(tmp_path)
    params, _ = stage_result(workdir, build(ExperimentSpec, values), "schedule_free", "last")
    assert same_leaves(params, whole["schedule_free"])
    last = workdir.checkpoints("schedule_free").restore()[1]["state"]["trainable"]
    assert any(not np.array_equal(last[path], params[path]) for path in last)
    rows = {row["stage"]: row["metrics"] for row in json.loads((tmp_path / "results.json").read_text())}
    assert "raw_accuracy" in rows["schedule_free"] and "raw_accuracy" not in rows["plateau"]


def test_a_schedule_free_stage_takes_no_second_average(digits_file):
    with pytest.raises(UserError, match="keeps its own average"):
        tiny_experiment.single(digits_file, {**WAYS["schedule_free"], "ema": {"decay": 0.9}})
