"""A sweep runs everything, skips what is finished, survives a failing run and resumes."""

import pytest
from tiny_experiment import command, config, read_json, write_config

from transfer_jax.core.config import load_sweep
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.sweeping import Sweep, run_names

RUNS = ({"stages.pretrain.lr": 0.01}, {"stages.pretrain.lr": -1.0}, {"stages.pretrain.lr": 0.02})


def states(workdir):
    return {run["name"]: run["state"] for run in read_json(workdir / "sweep.json")["runs"]}


def test_a_sweep_survives_a_failing_run_and_skips_finished_ones(tmp_path, digits_file):
    values = config(digits_file)
    values["stages"] = {"pretrain": values["stages"]["pretrain"]}
    path = write_config(tmp_path, values, RUNS)
    flags = ("--config", path, "--workdir", tmp_path / "sweep")
    first = command("sweep", *flags)
    assert first.returncode == 1, first.stderr
    assert states(tmp_path / "sweep") == {"lr=0.01": "done", "lr=-1.0": "failed", "lr=0.02": "done"}
    assert "lr=-1.0 failed" in first.stderr and "does not fit" in first.stderr and "Traceback" not in first.stderr
    assert "lr=0.02" in (tmp_path / "sweep" / "report.md").read_text()
    assert (tmp_path / "sweep" / "report.html").exists()
    # The failing run is mended in the config; one of the others lost its record and is run again.
    path.write_text(path.read_text().replace("-1.0", "0.03"))
    (tmp_path / "sweep" / "lr=0.02" / "report.html").unlink()
    kept = (tmp_path / "sweep" / "lr=0.01" / "report.html").stat().st_mtime_ns
    second = command("sweep", *flags)
    assert second.returncode == 0, second.stderr
    assert states(tmp_path / "sweep") == {"lr=0.01": "finished before", "lr=0.03": "done", "lr=0.02": "done"}
    assert (tmp_path / "sweep" / "lr=0.01" / "report.html").stat().st_mtime_ns == kept
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert all(f"lr={rate}" in text for rate in (0.01, 0.02, 0.03))
    (tmp_path / "sweep" / "report.md").unlink()
    done = command("report", "--workdir", tmp_path / "sweep")
    assert done.returncode == 0 and (tmp_path / "sweep" / "report.md").read_text() == text, done.stderr


def test_a_sweep_of_failures_is_an_error(tmp_path, digits_file):
    path = write_config(tmp_path, config(digits_file), ({"stages.pretrain.lr": -1.0},))
    done = command("sweep", "--config", path, "--workdir", tmp_path / "sweep")
    assert done.returncode == 2 and "all 1 runs of the sweep failed" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(("runs", "names"), [
    ([{"a.lr": 0.1}, {"a.lr": 0.2}], ["lr=0.1", "lr=0.2"]),
    ([{}], ["default"]),
    ([{"a.x": 1}, {"b.x": 1}], ["000_x=1", "001_x=1"]),
    ([{"a.path": "/x y/z", "b": (1, 2)}], ["path=-x-y-z,b=-1,-2"]),
    ([{"arg": "recipes=DANN with norms apart", "lr": 1}], ["recipes=DANN-with-norms-apart,lr=1"]),
])
def test_run_names_are_readable_distinct_file_names(runs, names):
    assert run_names(runs) == names


def test_a_run_may_change_the_argument_of_its_config(tmp_path):
    path = tmp_path / "one.py"
    path.write_text("def get_sweep(arg):\n    yield {'arg': 'method=dann', 'lr': 0.1}\n    yield {}\n")
    runs = Sweep(f"{path}:steps=2", tmp_path, ("seeds=(0,)",))
    assert [(runs.reference(name), runs.flags(name)) for name in runs.runs] == [
        (f"{path}:steps=2,method=dann", ["seeds=(0,)", "lr=0.1"]), (f"{path}:steps=2", ["seeds=(0,)"])]
    assert Sweep(str(path), tmp_path).reference("default") == str(path)


def test_an_empty_sweep_is_an_error(tmp_path, digits_file):
    with pytest.raises(UserError, match="yields no run"):
        load_sweep(str(write_config(tmp_path, config(digits_file))))
