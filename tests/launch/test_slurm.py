"""The batch files and the executor under a real Slurm: one machine that plays two nodes."""

import os
import re
import signal
import subprocess

import pytest
from one_box_slurm import Slurm, free_port
from tiny_experiment import ROOT, config, process, read_json, write_config

from transfer_jax.training.writers import read_metrics

STEPS = 800


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm") / "box") as running:
        # The names of the virtual nodes resolve nowhere, so the coordinator is named here.
        running.environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_PLATFORMS": "cpu",
                                "JAX_NUM_CPU_DEVICES": "1"}
        yield running


def experiment(digits_file, steps):
    values = config(digits_file, {"checkpoint_every": 50, "log_every": 50, "steps_per_dispatch": 10,
                                  "heartbeat_seconds": 60, "stages.pretrain.steps": steps})
    values["stages"] = {"pretrain": values["stages"]["pretrain"]}
    return values


class Job:
    """A training of two tasks on two nodes."""

    def __init__(self, slurm, path, run, log):
        self.slurm, self.run, self.log = slurm, run, log
        printed = slurm.run("sbatch", "-N2", "--ntasks-per-node=1", f"--output={log}", "launch/slurm.sbatch",
                            "--config", path, "--workdir", run, cwd=ROOT)
        self.number = re.search(r"Submitted batch job (\d+)", printed)[1]

    def saved(self):
        """The step of the newest checkpoint, or 0."""
        folder = self.run / "checkpoints" / "pretrain"
        return max((int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()),
                   default=0) if folder.is_dir() else 0

    def goes_on_beyond(self, step):
        assert self.slurm.wait(lambda: self.saved() > step, 240), self.said()

    def is_back_in_the_queue(self, times):
        """Waits for that, starts it again soon, and returns where it stopped.

        Slurm would wait two minutes. Within the same seconds a node refuses a job as one that was ended.
        """
        assert self.slurm.wait(lambda: self.slurm.restarts(self.number) == times
                               and self.slurm.state(self.number) == "PENDING", 120), self.said()
        stopped = self.saved()
        assert 0 < stopped < STEPS
        self.slurm.run("scontrol", "update", f"jobid={self.number}", "StartTime=now+4")
        return stopped

    def completes(self):
        assert self.slurm.wait(lambda: self.slurm.state(self.number) == "COMPLETED", 240), self.said()

    def said(self):
        return self.slurm.state(self.number), self.log.read_text() if self.log.exists() else "no log"


def kill_a_task(run):
    """As if a node ran out of memory: one of the two Pythons is gone without a word."""
    found = subprocess.run(["pgrep", "-f", f"^[^ ]*python -m transfer_jax.train .*{run}"], capture_output=True,
                           text=True, check=False)
    tasks = found.stdout.split()
    assert len(tasks) == 2
    os.kill(int(tasks[1]), signal.SIGKILL)


def test_a_job_goes_on_after_a_failure_a_preemption_and_the_end_of_its_time(slurm, digits_file, tmp_path):
    path, run, log = write_config(tmp_path, experiment(digits_file, STEPS)), tmp_path / "run", tmp_path / "job.out"
    job = Job(slurm, path, run, log)
    job.goes_on_beyond(0)
    kill_a_task(run)
    failed = job.is_back_in_the_queue(1)

    job.goes_on_beyond(failed)
    slurm.run("scontrol", "requeue", job.number)  # what a preemption does
    preempted = job.is_back_in_the_queue(2)

    job.goes_on_beyond(preempted)
    slurm.run("scancel", "--batch", "--signal=TERM", job.number)  # what --signal=B:TERM@120 does
    stopped = job.is_back_in_the_queue(3)
    job.completes()

    text = log.read_text()
    assert text.count("stopped by SIGTERM; everything is saved") == 4, text  # two processes, twice
    assert all(f"continuing after step {step}" in text for step in (failed, preempted, stopped)), text
    lines = [line["step"] for line in read_metrics(run) if line["kind"] == "train"]
    assert lines == list(range(50, STEPS + 1, 50))  # no gap, nothing twice
    assert (run / "report.html").is_file()


def test_a_mistake_of_the_user_is_not_repeated(slurm, tmp_path):
    log = tmp_path / "job.out"
    slurm.run("sbatch", "--wait", "-N1", f"--output={log}", "launch/slurm.sbatch", "--config", "no.py", "--workdir",
              tmp_path / "run", cwd=ROOT)
    text = log.read_text()
    assert text.count("error: ") - text.count("srun: error: ") == 1 and "no.py" in text and "queue" not in text, text


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
    path = write_config(tmp_path, experiment(digits_file, 4), [SWEEP[0], {"stages.pretrain.lr": -1.0}])
    done = process("sweep", "--config", path, "--workdir", tmp_path / "sweep", "--executor", "slurm", "--slurm",
                   "time=10")
    states = {run["name"]: run["state"] for run in read_json(tmp_path / "sweep" / "sweep.json")["runs"]}
    assert states == {"lr=0.01": "done", "lr=-1.0": "failed"}, done.stderr
    assert done.returncode == 1 and "report:" in done.stdout
