"""Stages that train new leaves beside a frozen model."""

import json
import shutil

import numpy as np
import pytest
import tiny_experiment
from safetensors.numpy import load_file

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.export import PARAMETERS, export_model

DIGITS = {"kind": "task", "task": "digits", "stream": "train"}
LOW_RANK = {"init": "pretrain", "steps": 6, "lr": 0.05, "objective": {"terms": {"digits": DIGITS}},
            "peft": {"low": {"kind": "lora", "targets": ("backbone/.*conv.*",), "rank": 2}},
            "partition": (("peft/.*", "low"), ("heads/.*", "head"), (".*", "frozen")),
            "groups": {"low": {}, "head": {}}, "evaluate": {"test": "digits"}}


def with_stages(digits_file, **stages):
    values = tiny_experiment.config(digits_file)
    return {**values, "stages": {"pretrain": values["stages"]["pretrain"], **stages}}


def test_only_the_new_leaves_move_and_later_stages_start_from_the_merged_model(digits_file, tmp_path):
    after = {"objective": {"terms": {}}, "steps": None, "evaluate": {"test": "digits"}, "init": "tuned"}
    run = tiny_experiment.run(with_stages(digits_file, tuned=LOW_RANK, after=after), tmp_path)
    before, tuned, later = (run.result(name, "last")[0] for name in ("pretrain", "tuned", "after"))
    assert set(before) == set(tuned) == set(later)
    changed = {path for path in before if not np.array_equal(before[path], tuned[path])}
    kernels = {path for path in before if path.startswith("backbone") and "conv" in path and path.endswith("kernel")}
    assert changed == kernels | {"heads/digits/dense/kernel", "heads/digits/dense/bias"} and len(kernels) >= 2
    for path in sorted(kernels)[-1:]:
        difference = np.asarray(tuned[path] - before[path])[0]
        assert np.linalg.matrix_rank(difference.reshape(-1, difference.shape[-1]), tol=1e-6) == 2
    # What was scored in the stage is the merged model, also when it is read back from the file.
    rows = json.loads((tmp_path / "results.json").read_text())
    scores = {row["stage"]: row["metrics"] for row in rows}
    assert scores["tuned"] == scores["after"]
    folder = export_model(run.assembly, run.workdir, tmp_path / "exported", "tuned")
    for name, leaf in load_file(folder / PARAMETERS).items():
        np.testing.assert_array_equal(leaf, later[name.removeprefix("params/")][0], err_msg=name)
    run._results.clear()
    for path, leaf in run.result("tuned", "last")[0].items():
        np.testing.assert_array_equal(leaf, later[path], err_msg=path)


def test_a_stopped_stage_goes_on_with_its_new_leaves(digits_file, tmp_path):
    values = with_stages(digits_file, tuned=LOW_RANK)
    whole = tiny_experiment.run(values, tmp_path).result("tuned", "last")[0]
    shutil.rmtree(tmp_path / "checkpoints" / "tuned" / "6")  # cut back to the checkpoint of step 4
    (tmp_path / "stages" / "tuned.json").unlink()
    resumed = tiny_experiment.run(values, tmp_path).result("tuned", "last")[0]
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, resumed[path], err_msg=path)


def test_a_target_that_matches_nothing_stops_before_training(digits_file, tmp_path):
    stage = {**LOW_RANK, "peft": {"low": {"kind": "lora", "targets": ("backbone/convolution",)}}}
    with pytest.raises(UserError, match="tuned.peft.low.targets: 'backbone/convolution' matches no module"):
        tiny_experiment.run(with_stages(digits_file, tuned=stage), tmp_path)
