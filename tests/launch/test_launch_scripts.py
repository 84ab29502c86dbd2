"""The scripts of launch/ that need no cluster, and what the others would send to one."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml
from jobset_schema import JOB_SET
from tiny_experiment import ROOT, command, config, process, read_json, write_config

from transfer_jax.training.writers import read_metrics

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
POD = {"NAME": "pod", "ZONE": "us-west4-a", "TYPE": "v5litepod-256", "RUNTIME": "v2-alpha-tpuv5-lite"}
STEPS = 800


def bash(script, *arguments, **environment):
    """Runs a script of launch/ with these variables and a PATH, and nothing else."""
    return subprocess.run(["bash", LAUNCH / script, *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          env={"PATH": os.environ["PATH"]} | environment, check=False)


def one_sentence(done, words):
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0], done


# All scripts


def test_shellcheck_has_no_finding():
    done = subprocess.run([os.path.join(os.path.dirname(sys.executable), "shellcheck"), "-x", *SCRIPTS],
                          capture_output=True, text=True, cwd=ROOT, check=False)
    assert len(SCRIPTS) > 8 and done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", [*SCRIPTS, *LAUNCH.glob("*.yaml")], ids=lambda path: path.name)
def test_every_script_says_what_it_does(path):
    head = path.read_text()[:1500]
    assert "# Needs:" in head
    assert path.name == "environment.sh" or ("# What:" in head and "# Command:" in head)


# processes.sh


def tiny(digits_file, folder, steps, sweep=()):
    values = config(digits_file, {"checkpoint_every": 50, "log_every": 50, "steps_per_dispatch": 10,
                                  "heartbeat_seconds": 60, "stages.pretrain.steps": steps})
    values["stages"] = {"pretrain": values["stages"]["pretrain"]}
    return write_config(folder, values, sweep)


def wait_for(condition, seconds=200):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    assert found
    return found


def saved(run, after=0):
    """The newest checkpoint after this step, or 0."""
    folder = run / "checkpoints" / "pretrain"
    steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()] if folder.is_dir() else []
    return max((step for step in steps if step > after), default=0)


class Two:
    """`processes.sh 2 train` on a run."""

    def __init__(self, path, run, logs):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "LOGS": str(logs)}
        self.script = subprocess.Popen(
            ["bash", LAUNCH / "processes.sh", "2", "train", "--config", path, "--workdir", run], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def pid(self, number):
        found = subprocess.run(["pgrep", "-P", str(self.script.pid), "-f", f"process {number}$"], capture_output=True,
                               text=True, check=False)
        return int(found.stdout)

    def end(self):
        """(exit code, stdout, stderr)."""
        out, err = self.script.communicate(timeout=300)
        return self.script.returncode, out, err


def test_two_processes_fail_together_stop_together_and_finish(digits_file, tmp_path):
    path, run = tiny(digits_file, tmp_path, STEPS), tmp_path / "run"
    first = Two(path, run, tmp_path / "logs1")
    step = wait_for(lambda: saved(run))
    os.kill(first.pid(1), signal.SIGKILL)
    code, _, err = first.end()
    assert code == 128 + signal.SIGKILL and "process 1 ended with code 137" in err

    second = Two(path, run, tmp_path / "logs2")
    step = wait_for(lambda: saved(run, step))
    second.script.send_signal(signal.SIGTERM)
    code, _, err = second.end()
    assert code == 0 and "stopped by SIGTERM; everything is saved" in err
    assert "stopped by SIGTERM" in (tmp_path / "logs2" / "process_1.log").read_text()
    stopped = saved(run)
    assert stopped < STEPS and not (run / "report.html").exists()

    code, out, err = Two(path, run, tmp_path / "logs3").end()
    assert code == 0 and "report:" in out, err
    assert f"continuing after step {stopped}" in err
    lines = [line["step"] for line in read_metrics(run) if line["kind"] == "train"]
    assert lines == list(range(50, STEPS + 1, 50))


def test_a_mistake_comes_back_from_the_processes(tmp_path):
    done = bash("processes.sh", 2, "train", "--config", "no.py", "--workdir", tmp_path, LOGS=str(tmp_path / "logs"))
    assert done.returncode == 2 and "error: " in done.stderr and "no.py" in done.stderr
    assert "no.py" in (tmp_path / "logs" / "process_1.log").read_text()


@pytest.mark.parametrize(("arguments", "words"), [
    ((), "number of processes"), (("two", "train"), "number of processes"), ((0, "train"), "number of processes"),
    ((2,), "name a command")])
def test_processes_wants_a_number_and_a_command(arguments, words):
    one_sentence(bash("processes.sh", *arguments), words)


# until_finished.sh


@pytest.mark.parametrize(("does", "code"), [("touch $run/report.html", 0), ("true", 75), ("exit 2", 2), ("exit 3", 3)])
def test_a_training_that_left_early_has_not_finished(tmp_path, does, code):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nrun=$4\n[ \"$3 $5 $6\" = '--workdir --config X' ] || exit 99\n{does}\n")
    python.chmod(0o755)
    assert bash("until_finished.sh", tmp_path, "--config", "X", PYTHON=str(python)).returncode == code


def test_a_stop_reaches_the_training_and_is_no_end(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\ntrap 'touch $4/saved; exit 0' TERM\ntouch $4/ready\n"
                      "while true; do sleep 0.1; done\n")
    python.chmod(0o755)
    running = subprocess.Popen(["bash", LAUNCH / "until_finished.sh", tmp_path],
                               env={**os.environ, "PYTHON": str(python)})
    wait_for((tmp_path / "ready").exists, 30)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 75 and (tmp_path / "saved").exists()


# tpu_pod.sh


def test_dry_runs_print_what_would_be_sent():
    """The golden file: every sub-command with what it prints, as a shell would read it."""
    training = ("--config", "configs/X.py:data=mnist", "--workdir", "/mnt/a b")
    printed = []
    for action in ("create", "copy", "run", "log", "stop", "delete"):
        done = bash("tpu_pod.sh", "--dry-run", action, *(training if action == "run" else ()), **POD)
        assert done.returncode == 0, done.stderr
        printed.append(f"== {action}\n{done.stdout}")
    golden = ROOT / "tests" / "launch" / "tpu_pod_dry_run.txt"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text("".join(printed))
    assert "".join(printed) == golden.read_text()
    everything = bash("tpu_pod.sh", "--dry-run", "all", *training, **POD).stdout
    assert everything == "".join(text.partition("\n")[2] for text in printed[:4])
    last = shlex.split(everything.splitlines()[-2])[-1]
    assert "'/mnt/a b'" in last and "--distributed" in last


def test_a_project_and_preemptible_slices_can_be_asked_for():
    done = bash("tpu_pod.sh", "--dry-run", "create", PROJECT="mine", SPOT="1", **POD)
    words = shlex.split(done.stdout.splitlines()[0])
    assert "--spot" in words and "--project=mine" in words


@pytest.mark.parametrize(("arguments", "leave_out", "words"), [
    (("create",), "TYPE", "TYPE is not set"), (("log",), "NAME", "NAME is not set"), (("fly",), "", "name what to do"),
    ((), "", "name what to do"), (("run",), "", "give the options of the training")])
def test_a_pod_wants_to_know_what_it_needs(arguments, leave_out, words):
    given = {name: value for name, value in POD.items() if name != leave_out}
    one_sentence(bash("tpu_pod.sh", "--dry-run", *arguments, **given), words)


def test_without_gcloud_the_pod_script_says_so(tmp_path):
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    one_sentence(bash("tpu_pod.sh", "create", **POD | {"PATH": str(tmp_path)}), "gcloud is not installed")


@pytest.mark.parametrize(("states", "code"), [("ACTIVE", 0), ("FAILED", 2)])
def test_create_waits_for_what_becomes_of_the_request(tmp_path, states, code):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$4" != describe ] || echo {states}\n')
    gcloud.chmod(0o755)
    done = bash("tpu_pod.sh", "create", **POD | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == code, done.stderr
    assert [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()] == ["create", "describe"]


# JobSet and SkyPilot

VALUES = ["name=mine", "image=registry.example/mine:1", "config=configs/X.py", "workdir=/mnt/runs/X", "hosts=4",
          "chips=4", "accelerator=tpu-v5-lite-podslice", "topology=4x4", "claim=runs"]


def render(*values):
    return subprocess.run([sys.executable, LAUNCH / "render_jobset.py", *values], capture_output=True, text=True,
                          check=False)


def test_the_rendered_job_set_is_one():
    done = render(*VALUES, "slices=2")
    manifest = yaml.safe_load(done.stdout)
    jsonschema.validate(manifest, JOB_SET)
    job = manifest["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    assert job["replicas"] == 2 and job["template"]["spec"]["completions"] == 4
    assert pod["containers"][0]["args"] == ["/mnt/runs/X", "--config", "configs/X.py", "--distributed"]
    assert (ROOT / pod["containers"][0]["command"][1]).is_file()


@pytest.mark.parametrize(("right", "wrong"), [
    ("completionMode", "completionmode"), ("maxRestarts", "maxRestart"), ("nodeSelector", "nodeSelectors"),
    ("containerPort: 8471", "containerPort: http"), ("restartPolicy: Never", "restartPolicy: Always"),
    ("Indexed", "indexed"), ("claimName: ", "claim: "), ("v1alpha2", "v1")])
def test_a_typo_in_the_template_is_caught(right, wrong):
    text = render(*VALUES).stdout
    assert right in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text.replace(right, wrong)), JOB_SET)


@pytest.mark.parametrize(("values", "words"), [
    (VALUES[1:], "no value for name"), ([*VALUES, "host=4"], "did you mean 'hosts'?"),
    ([*VALUES, "hosts=4"], "each key once"), ([*VALUES[1:], "name=My_Run"], "no name for Kubernetes"),
    ([*VALUES, "slices=0"], "not a positive number"), ([*VALUES, "mount=/elsewhere"], "is not below mount=/elsewhere"),
    ([*VALUES[:1], 'image=a"b', *VALUES[2:]], "characters"), ([*VALUES, "slices"], "every argument is KEY=VALUE")])
def test_what_cannot_be_rendered_is_one_sentence(values, words):
    one_sentence(render(*values), words)


def test_the_sky_pilot_task_has_the_parts_of_one():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    text = {"type": "string", "minLength": 1}
    jsonschema.validate(task, {
        "type": "object", "additionalProperties": False, "required": ["resources", "setup", "run", "envs"],
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z][a-z0-9-]*$"}, "num_nodes": {"type": "integer", "minimum": 1},
            "workdir": text, "setup": text, "run": text, "envs": {"type": "object"},
            "resources": {"type": "object", "additionalProperties": False, "properties": {
                "accelerators": {"type": "string", "pattern": r"^[\w-]+(:\d+)?$"}, "use_spot": {"type": "boolean"}}},
            "file_mounts": {"type": "object", "additionalProperties": {
                "type": "object", "additionalProperties": False, "required": ["name", "mode"],
                "properties": {"name": text, "mode": {"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]}}}}}})
    for part in (task["setup"], task["run"]):
        checked = subprocess.run(["bash", "-n"], input=part, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_the_nodes_of_a_sky_pilot_task_find_each_other(tmp_path):
    """The task's own `run`, with the variables that SkyPilot sets, and a Python that writes down its arguments."""
    (tmp_path / "launch").symlink_to(LAUNCH)
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n')
    (tmp_path / "python").chmod(0o755)
    text = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"].replace(".venv/bin/python",
                                                                               str(tmp_path / "python"))
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
                 "CONFIG": "configs/X.py", "RUN": "X", "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-c", text], cwd=tmp_path, env=variables, check=False, timeout=30)
    assert (tmp_path / "arguments").read_text().split() == [
        "-m", "transfer_jax.train", "--workdir", "/runs/X", "--config", "configs/X.py", "--coordinator",
        "10.0.0.1:8476", "--processes", "2", "--process", "1"]


# Sweeps in several processes

RUNS = ({"stages.pretrain.lr": 0.01}, {"stages.pretrain.lr": -1.0}, {"stages.pretrain.lr": 0.02})


def test_a_sweep_in_processes_of_its_own(digits_file, tmp_path):
    path, workdir = tiny(digits_file, tmp_path, 4, RUNS), tmp_path / "sweep"
    only = command("sweep", "--config", path, "--workdir", workdir, "--only", 0)
    assert only.returncode == 0 and (workdir / "lr=0.01" / "report.html").is_file(), only.stderr
    assert command("sweep", "--config", path, "--workdir", workdir, "--only", 1).returncode == 2  # a mistake: final
    assert not (workdir / "report.html").exists()
    done = process("sweep", "--config", path, "--workdir", workdir, "--executor", "local")
    assert done.returncode == 1 and "report:" in done.stdout, done.stderr
    states = {run["name"]: run["state"] for run in read_json(workdir / "sweep.json")["runs"]}
    assert states == {"lr=0.01": "finished before", "lr=-1.0": "failed", "lr=0.02": "done"}
    assert all(f"lr={rate}" in (workdir / "report.md").read_text() for rate in (0.01, 0.02))


@pytest.mark.parametrize(("number", "flags"), [(signal.SIGTERM, ()), (signal.SIGUSR2, ("--only", "0"))])
def test_a_stopped_sweep_stops_its_run_and_starts_no_other(digits_file, tmp_path, number, flags):
    """Also by submitit's warning before the time of a job ends."""
    path, workdir = tiny(digits_file, tmp_path, 100_000, RUNS[::2]), tmp_path / "sweep"
    running = subprocess.Popen([sys.executable, "-m", "transfer_jax.sweep", "--config", path, "--workdir", workdir,
                                *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: saved(workdir / "lr=0.01"))
    running.send_signal(number)
    _, err = running.communicate(timeout=200)
    assert running.returncode == 0 and "stopped by SIGTERM" in err
    assert "stopped by SIGTERM" in (workdir / "lr=0.01" / "output.txt").read_text()
    assert not (workdir / "lr=0.02").exists()


def test_the_runs_of_a_sweep_can_be_listed(digits_file, tmp_path):
    done = command("sweep", "--config", tiny(digits_file, tmp_path, 4, RUNS), "--list")
    listed = [line.split() for line in done.stdout.splitlines() if "lr=" in line]
    assert done.returncode == 0 and listed == [["0", "lr=0.01"], ["1", "lr=-1.0"], ["2", "lr=0.02"]]


@pytest.mark.parametrize(("flags", "words"), [
    (("--only", 3), "--only 3: the sweep has the runs 0 ... 2"), (("--jobs", 2), "need --executor local or slurm"),
    (("--executor", "local", "--jobs", 0), "at least one run"),
    (("--executor", "local", "--slurm", "time=1"), "not for"),
    (("--executor", "local", "--slurm", "time"), "KEY=VALUE"), (("--executor", "moon"), "invalid choice")])
def test_options_of_a_sweep_that_cannot_be(digits_file, tmp_path, flags, words):
    path = tiny(digits_file, tmp_path, 4, RUNS)
    one_sentence(command("sweep", "--config", path, "--workdir", tmp_path / "sweep", *flags), words)


def test_without_submitit_the_executor_says_so(digits_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    path = tiny(digits_file, tmp_path, 4, RUNS)
    one_sentence(command("sweep", "--config", path, "--workdir", tmp_path / "sweep", "--executor", "local"),
                 "need submitit: pip install submitit")


# docs/launch.md


def test_the_page_names_all_scripts_and_no_others():
    text = (ROOT / "docs" / "launch.md").read_text()
    named = set(re.findall(r"launch/([\w.]+\.(?:sh|sbatch|py|yaml))", text))
    assert all((LAUNCH / name).is_file() for name in named)
    ours = {path.name for path in LAUNCH.iterdir() if path.is_file()}
    assert ours - named == {"environment.sh", "slurm_run.sh", "quickstart.sh", "test.sh"}


def test_the_commands_of_the_page_are_understood():
    text = (ROOT / "docs" / "launch.md").read_text()
    rendering = shlex.split(text.partition("python launch/render_jobset.py ")[2].partition("|")[0].replace("\\\n", ""))
    jsonschema.validate(yaml.safe_load(render(*rendering).stdout), JOB_SET)
