"""The learning-rate range test: what it trains, when it ends, what it says and that it leaves nothing behind."""

import numpy as np
import pytest
import tiny_experiment
from tiny_experiment import command, write_config

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.range_test import RangeTest, range_test
from transfer_jax.experiment.spec import ExperimentSpec


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_rates_grow_by_one_factor_and_are_those_of_the_steps(digits_file):
    spec = build(ExperimentSpec, tiny_experiment.config(digits_file, {
        "stages.pretrain.optimizer": {"kind": "sgd", "momentum": 0.0}}))
    found = range_test(spec, "pretrain", 1e-4, 1e-1, 6)
    np.testing.assert_allclose(found.rates, 1e-4 * 1000 ** (np.arange(6) / 6), rtol=1e-6)
    # The engine with the same rates, as a schedule of the stage, sees the same losses.
    again = tiny_experiment.trained(tiny_experiment.single(digits_file, {
        "optimizer": {"kind": "sgd", "momentum": 0.0}, "lr": 1e-1, "steps": 6,
        "schedule": {"kind": "exponential", "start": 1e-3}}))
    assert np.shape(found.losses) == (6, 1) == again.metrics["loss"].shape
    np.testing.assert_allclose(found.losses[0], again.metrics["loss"][0], rtol=1e-5)


def test_a_diverging_loss_ends_the_test(digits_file):
    spec = build(ExperimentSpec, tiny_experiment.config(digits_file, {
        "stages.pretrain.optimizer": {"kind": "sgd"}}))
    found = range_test(spec, "pretrain", 1e-2, 1e4, 60)
    assert 3 <= len(found.rates) < 60
    assert found.suggestions["tenth"] < found.suggestions["steepest"] * 1e3 and found.rates[-1] < 1e4


def test_suggestions_of_a_known_curve():
    rates = np.geomspace(1e-5, 1, 201)
    test = RangeTest(list(rates), [np.array([2 - np.tanh(np.log10(rate) + 3) + 50 * rate ** 3]) for rate in rates])
    # The fall is steepest at 1e-3; smoothing over about ten steps delays it by less than a factor of 3.
    assert 1e-3 <= test.suggestions["steepest"] < 3e-3
    lowest = rates[int(np.argmin(test.smoothed))]
    assert test.suggestions["tenth"] == lowest / 10
    with pytest.raises(UserError, match="lower rate"):
        _ = RangeTest([1.0], [np.ones(1)]).suggestions


def test_the_command_reads_a_run_and_leaves_it_alone(digits_file, tmp_path):
    values = tiny_experiment.config(digits_file)
    values["stages"] = {name: values["stages"][name] for name in ("pretrain", "head")}
    config = write_config(tmp_path / "config", values)
    first = {**values, "stages": {"pretrain": values["stages"]["pretrain"]}}
    tiny_experiment.run(first, tmp_path / "run")
    before = files(tmp_path / "run")
    out = tmp_path / "figures" / "rates.html"
    done = command("lr_find", "--config", config, "--stage", "head", "--workdir", tmp_path / "run", "--steps", 8,
                   "--low", 1e-4, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "to start from:" in done.stdout and "learning rate" in done.stdout
    assert "<svg" not in out.read_text() and "Learning rates of stage head" in out.read_text()
    assert files(tmp_path / "run") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "figures", "run"]


def test_stages_before_are_trained_where_no_run_is_given(digits_file, tmp_path):
    values = tiny_experiment.config(digits_file)
    spec = build(ExperimentSpec, values)
    found = range_test(spec, "head", 1e-4, 1e-2, 4)
    tiny_experiment.run({**values, "stages": {"pretrain": values["stages"]["pretrain"]}}, tmp_path)
    again = range_test(spec, "head", 1e-4, 1e-2, 4, tmp_path)
    np.testing.assert_array_equal(found.losses, again.losses)


@pytest.mark.parametrize(("flags", "words"), [
    (("--stage", "hed"), "did you mean 'head'"),
    (("--stage", "head", "--low", "2"), "0 < --low < --high"),
    (("--stage", "head", "--out", "rates.pdf"), "must end in .html"),
])
def test_faults_are_named(flags, words, digits_file, tmp_path):
    done = command("lr_find", "--config", write_config(tmp_path, tiny_experiment.config(digits_file)), *flags)
    assert done.returncode == 2 and words in done.stderr
