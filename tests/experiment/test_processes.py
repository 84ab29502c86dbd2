"""Several processes train as one does: the same losses, one set of files; any number goes on where others stopped."""

import os
import shutil
import socket
import subprocess

import numpy as np
import pytest
from tiny_experiment import ROOT, arguments, config, read_json, write_config

from transfer_jax.core.errors import UserError
from transfer_jax.core.processes import Membership, barrier, first_says, gathered
from transfer_jax.training.writers import read_metrics

CHANGES = {"seeds": (0, 1), "model.backbones.backbone.norm": "batch", "heartbeat_seconds": 20, "checkpoint_every": 4,
           "streams.train.storage": "host", "streams.train.batch_size": 16,
           "streams.train.augment": ({"kind": "crop"},), "streams.test.storage": "host",
           "stages.finetune.best": {"stream": "test"}, "stages.finetune.init": "pretrain"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(path, workdir, count, devices, *flags):
    """The texts on stderr of `count` processes that ran the experiment together."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    address = f"127.0.0.1:{free_port()}"
    together = [] if count == 1 else ["--coordinator", address, "--processes", count, "--process"]
    running = [subprocess.Popen(arguments("train", "--config", path, "--workdir", workdir, "--quiet", *flags,
                                          *together, *([number] if together else [])), cwd=ROOT, env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in range(count)]
    ended = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * count, [err[-2000:] for _, err in ended]
    assert all("report:" not in out for out, _ in ended[1:]) and "report:" in ended[0][0]
    return [err for _, err in ended]


def measured(workdir):
    """{(stage, step, kind, stream, metric): values} of a run; every entry once."""
    lines = read_metrics(workdir)
    found = {(line["stage"], line["step"], line["kind"], line.get("stream"), name): values
             for line in lines for name, values in line["metrics"].items()}
    assert len(found) == sum(len(line["metrics"]) for line in lines)
    return found


def assert_equal_runs(one, other):
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_allclose(values, other[key], rtol=1e-4, atol=1e-5, err_msg=str(key))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, digits_file):
    """(config file, what one process on one device measured)."""
    folder = tmp_path_factory.mktemp("processes")
    values = config(digits_file, CHANGES)
    del values["stages"]["head"]
    path = write_config(folder, values)
    train(path, folder / "alone", 1, 1)
    return path, measured(folder / "alone")


def test_two_processes_train_as_one(alone, tmp_path):
    path, expected = alone
    train(path, tmp_path / "run", 2, 2, "--config.mesh.fsdp=2")
    assert_equal_runs(measured(tmp_path / "run"), expected)
    assert len(read_json(tmp_path / "run" / "results.json")) == 3  # two stages and the best of the last
    assert (tmp_path / "run" / "model" / "parameters.safetensors").is_file()


def test_other_numbers_of_processes_go_on_where_some_stopped(alone, tmp_path):
    path, expected = alone
    run = tmp_path / "run"
    train(path, run, 4, 1)
    (run / "stages" / "finetune.json").unlink()  # as if all had been stopped after step 4 of this stage
    shutil.rmtree(run / "checkpoints" / "finetune" / "6")
    train(path, run, 1, 8)
    assert_equal_runs(measured(run), expected)


def test_alone_all_agree_at_once():
    barrier("test")
    assert first_says(lambda: [1]) == [1] and gathered(np.array([3])).tolist() == [[3]]


@pytest.mark.parametrize(("given", "message"), [
    (("127.0.0.1:1", 2, None), "belong together"), (("localhost", 2, 0), "is not HOST:PORT"),
    (("127.0.0.1:1", 2, 2), "--process 2 is not among 0 ... 1")])
def test_memberships_that_cannot_be_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Membership(*given)
