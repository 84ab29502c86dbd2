"""The batch files and the executor under a real Slurm: one machine that plays two nodes."""

import os
import re

import pytest
from one_box_slurm import Slurm, free_port
from tiny_experiment import ROOT, config, process, read_json, write_config

from transfer_jax.training.writers import read_metrics

STEPS = 1200


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm") / "box") as running:
        # The names of the virtual nodes resolve nowhere, so the coordinator is named here.
        running.environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_PLATFORMS": "cpu",
                                "JAX_NUM_CPU_DEVICES": "1"}
        yield running


def experiment(digits_file, steps):
    values = config(digits_file, {"checkpoint_every": 50, "log_every": 50, "steps_per_dispatch": 10,
                                  "stages.pretrain.steps": steps})
    values["stages"] = {"pretrain": values["stages"]["pretrain"]}
    return values


def submit(slurm, *flags):
    """The number of a job that was given to sbatch."""
    printed = slurm.run("sbatch", *flags, cwd=ROOT)
    found = re.search(r"Submitted batch job (\d+)", printed)
    assert found, printed
    return found[1]


def test_a_job_that_is_requeued_saves_goes_on_and_repeats_nothing(slurm, digits_file, tmp_path):
    path, run, log = write_config(tmp_path, experiment(digits_file, STEPS)), tmp_path / "run", tmp_path / "job.out"
    job = submit(slurm, "-N2", "--ntasks-per-node=1", f"--output={log}", "launch/slurm.sbatch", "--config", path,
                 "--workdir", run)

    def saved():
        folder = run / "checkpoints" / "pretrain"
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []

    assert slurm.wait(saved, 120), log.read_text()
    slurm.run("scontrol", "requeue", job)
    assert slurm.wait(lambda: slurm.state(job) == "PENDING", 60), log.read_text()
    stopped = saved()[-1]
    assert stopped < STEPS
    slurm.run("scontrol", "update", f"jobid={job}", "StartTime=now")
    assert slurm.wait(lambda: slurm.state(job) == "COMPLETED", 240), (slurm.state(job), log.read_text())
    text = log.read_text()
    assert f"continuing after step {stopped}" in text and "stopped by SIGTERM; everything is saved" in text
    lines = [line["step"] for line in read_metrics(run) if line["kind"] == "train"]
    assert lines == list(range(50, STEPS + 1, 50))
    assert (run / "report.html").is_file()


SWEEP = [{"stages.pretrain.lr": 0.01}, {"stages.pretrain.lr": 0.02}]


def test_a_sweep_as_an_array_and_its_report_afterwards(slurm, digits_file, tmp_path):
    path = write_config(tmp_path, experiment(digits_file, 4), SWEEP)
    slurm.run("sbatch", "--wait", "--array=0-1", f"--output={tmp_path}/%a.out", "launch/slurm_sweep.sbatch", "--config",
              path, "--workdir", tmp_path / "sweep", cwd=ROOT)
    for name in ("lr=0.01", "lr=0.02"):
        assert (tmp_path / "sweep" / name / "report.html").is_file(), (tmp_path / "0.out").read_text()
    merged = process("sweep", "--config", path, "--workdir", tmp_path / "sweep")
    assert merged.returncode == 0 and merged.stdout.count("finished before") == 2, merged.stderr
    assert (tmp_path / "sweep" / "report.html").is_file()


def test_a_sweep_through_the_executor(slurm, digits_file, tmp_path, monkeypatch):
    for name, value in slurm.environment.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    path = write_config(tmp_path, experiment(digits_file, 4), [*SWEEP, {"stages.pretrain.lr": -1.0}])
    done = process("sweep", "--config", path, "--workdir", tmp_path / "sweep", "--executor", "slurm", "--jobs", "2",
                   "--slurm", "time=10")
    states = {run["name"]: run["state"] for run in read_json(tmp_path / "sweep" / "sweep.json")["runs"]}
    assert states == {"lr=0.01": "done", "lr=0.02": "done", "lr=-1.0": "failed"}, done.stderr
    assert done.returncode == 1 and "report:" in done.stdout
