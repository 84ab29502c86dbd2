"""Whatever stops a run, in one process or in two, it ends soon and with a reason, and goes on to the very same end.

`--long` makes the random kills at least 200 and, with `--counts FILE`, leaves what was counted (docs/reliability.md).
"""

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import (
    FAILED_BY_ANOTHER,
    KILLED,
    STEPS,
    Experiment,
    Nursery,
    assert_close_end,
    assert_same_end,
    write_experiment,
)
from kills import Kills, phase_of, writing
from table import LONG_KILLS

from transfer_jax.training.writers import read_metrics

HEARTBEAT = 3
LOAD = 12  # what a busy machine may add to any time, in seconds
DEFAULT_KILLS = 10


@pytest.fixture(scope="module", autouse=True)
def compilation(compilation_for_bits):
    """Bits are compared."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def experiment(folder, session_cache):
    nursery = Nursery(folder)
    yield Experiment(write_experiment(folder / "experiment"), nursery)
    nursery.close()


@pytest.fixture(scope="module")
def alone(experiment, folder):
    """The workdir of a run of one process that was never stopped."""
    return experiment.finish(folder / "alone").workdir


@pytest.fixture(scope="module")
def pair(experiment, folder):
    """The same of two processes."""
    return experiment.finish(folder / "pair", 2).workdir


def assert_no_gap(workdir):
    """Every step has its one line."""
    lines = read_metrics(workdir)
    for stage in STEPS:
        steps = [line["step"] for line in lines if (line["stage"], line["kind"]) == (stage, "train")]
        assert steps == list(range(1, len(steps) + 1))


@pytest.mark.thorough
def test_random_kills(experiment, alone, pair, tmp_path, pytestconfig):
    seconds = {}
    for processes in (1, 2):  # once more, since the first time compiled
        began = time.monotonic()
        experiment.finish(tmp_path / f"again-{processes}", processes)
        seconds[processes] = time.monotonic() - began
    out = Path(pytestconfig.getoption("--counts") or tmp_path / "counts.json")
    kills = Kills(experiment, {1: alone, 2: pair}, seconds, tmp_path, out, seed=0)
    kills.run(LONG_KILLS if pytestconfig.getoption("--long") else DEFAULT_KILLS)
    assert not kills.failures
    assert kills.counts["runs compared"] == kills.counts["runs bit-identical"] > 0


def test_what_an_earlier_kill_left_is_no_save(tmp_path):
    left = tmp_path / "checkpoints" / "pretrain" / ".writing-5"
    left.mkdir(parents=True)
    leftovers = writing(tmp_path)
    assert phase_of(tmp_path, 0, leftovers) == "starting"
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert phase_of(tmp_path, 0, leftovers) == "training"
    left.with_name(".writing-10").mkdir()
    assert phase_of(tmp_path, 0, leftovers) == "saving"


def kill(team, victims, moment):
    """Kills processes; the others end by themselves and name one that was killed."""
    team.reach(moment)
    team.send(signal.SIGKILL, victims)
    codes = team.end(LOAD + 30)
    assert codes == [KILLED if number in victims else FAILED_BY_ANOTHER for number in range(2)], team.texts()
    for child in (child for child in team.children if child.code == FAILED_BY_ANOTHER):
        assert f"error: process {victims[0]}" in child.text, team.texts()
        assert "the same command continues from the last checkpoint" in child.text


def test_one_of_two_processes_dies_hangs_or_is_asked_to_stop(experiment, pair, tmp_path):
    """One run, which meets all of it one after the other."""
    hurry = f"--config.heartbeat_seconds={HEARTBEAT}"
    team = experiment.begin(tmp_path, 2, 1, "--config.heartbeat_seconds=8")  # it has to pass, and no more than that
    kill(team, [1], lambda: team.steps("pretrain"))

    team = experiment.begin(tmp_path, 2)
    kill(team, [0], lambda: team.steps("finetune"))

    team = experiment.begin(tmp_path, 2)
    kill(team, [0, 1], lambda: team.saving("finetune") and team.steps("finetune")[-1] >= 10)
    assert_no_gap(tmp_path)

    team = experiment.begin(tmp_path, 2)
    team.reach(lambda: team.steps("finetune")[-1] >= 15)
    team.send(signal.SIGTERM, [1])
    assert team.end() == [0, 0], team.texts()
    assert all("stopped by SIGTERM; everything is saved" in child.text for child in team.children), team.texts()
    saved = team.steps("finetune")[-1]
    assert read_metrics(tmp_path)[-1]["step"] == saved < STEPS["finetune"]

    team = experiment.begin(tmp_path, 2, 1, hurry)
    team.reach(lambda: f"continuing after step {saved}" in team.children[0].text
               and team.steps("finetune")[-1] > saved)
    team.send(signal.SIGSTOP, [1])
    stopped = time.monotonic()
    while team.children[0].poll() is None and time.monotonic() - stopped < HEARTBEAT + LOAD:
        time.sleep(0.05)
    team.send(signal.SIGKILL, [1])
    assert team.end() == [FAILED_BY_ANOTHER, KILLED], team.texts()
    assert "error: process 1 on" in team.children[0].text and "has not answered for" in team.children[0].text

    experiment.finish(tmp_path, 2)
    assert_same_end(tmp_path, pair)


def test_a_fault_within_one_of_two_processes(experiment, pair, tmp_path):
    """A thread that raises, a full disk for its part of a save, NaN in its examples, an image that is gone."""
    def fails(codes, sentence, *inject, number=1):
        team = experiment.begin(tmp_path, 2, inject={number: inject})
        team.reach_first_end()
        began = time.monotonic()
        # What both find out at the same moment ends the one or the other by its own word or by the other's.
        assert team.end() == codes or (codes == [2, 2] and set(team.codes()) == {2, FAILED_BY_ANOTHER}), team.texts()
        assert time.monotonic() - began < LOAD  # a second where the machine is idle, never the heartbeat time of 20
        assert any(sentence in child.text for child in team.children), team.texts()
        for child in (child for child in team.children if child.code == FAILED_BY_ANOTHER):
            assert (f"error: process {number} on" in child.text or codes == [2, 2]) and sentence in child.text
        assert_no_gap(tmp_path)

    fails([FAILED_BY_ANOTHER, 1], "a fault within a thread", ["thread_raises", 9])
    fails([FAILED_BY_ANOTHER, 2], "(No space left on device); the ones before it are kept", ["save_fails"])
    fails([2, FAILED_BY_ANOTHER], "(No space left on device); the ones before it are kept", ["save_fails"], number=0)
    fails([2, 2], "became NaN or infinite at step", ["nan_at", 11])

    images = experiment.config.parent / "images"
    team = experiment.begin(tmp_path, 2)
    team.reach(lambda: team.steps("finetune"))
    shutil.move(images / "train" / "7", images / "elsewhere")
    try:
        codes = team.end()
    finally:
        shutil.move(images / "elsewhere", images / "train" / "7")
    assert 2 in codes and set(codes) <= {2, FAILED_BY_ANOTHER}, team.texts()
    assert ".png" in team.texts()

    experiment.finish(tmp_path, 2)
    assert_same_end(tmp_path, pair)


@pytest.mark.thorough
def test_other_numbers_of_processes_and_devices_go_on(experiment, alone, tmp_path):
    last = 0
    for processes, devices in ((2, 4), (1, 8), (1, 1), (4, 1)):
        team = experiment.begin(tmp_path, processes, devices)
        team.reach(lambda team=team, last=last: max(team.steps("finetune"), default=0) > last, 240)
        team.send(signal.SIGKILL)
        assert team.end() == [KILLED] * processes
        assert not last or f"continuing after step {last}" in team.children[0].text, team.texts()
        last = team.steps("finetune")[-1]
    experiment.finish(tmp_path, 2, 4)
    assert_close_end(tmp_path, alone)


def test_a_polite_stop_before_and_between_stages(experiment, alone, tmp_path):
    def stopped(team):
        assert team.end() == [0], team.texts()
        assert "stopped by SIGTERM; everything is saved" in team.texts()

    stopped(experiment.begin(tmp_path, inject={0: [["stopped_while_opening"]]}))
    assert not (tmp_path / "metrics.jsonl").exists()
    team = experiment.begin(tmp_path)
    team.reach((tmp_path / "stages" / "pretrain.json").is_file)
    team.send(signal.SIGTERM)
    stopped(team)
    experiment.finish(tmp_path)
    assert_same_end(tmp_path, alone)


@contextlib.contextmanager
def mounted(path, *arguments):
    """A mount for the time within; without the right to mount, the test is skipped."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("checkpoint_every", [5, 1000])
def test_a_full_disk(experiment, alone, tmp_path, checkpoint_every):
    """It shows in a save, or in the metrics where the next save is far away."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as small:
        team = experiment.begin(small / "run", 1, 1, f"--config.checkpoint_every={checkpoint_every}")
        team.reach((small / "run" / "metrics.jsonl").is_file)
        with contextlib.suppress(OSError), open(small / "filler", "wb") as filler:
            while True:
                filler.write(b"0" * 4096)
                filler.flush()
        assert team.end(60) == [2], team.texts()
        assert "No space left on device" in team.texts() and "Traceback" not in team.texts(), team.texts()
        assert "the same command continues" in team.texts()
        (small / "filler").unlink()
        experiment.finish(small / "run")
        assert_same_end(small / "run", alone)


def test_a_folder_that_cannot_be_written(experiment, alone, tmp_path):
    team = experiment.begin(tmp_path / "run")
    team.reach(lambda: team.steps("pretrain"))
    team.send(signal.SIGKILL)
    team.end()
    with mounted(tmp_path / "run", "--bind", str(tmp_path / "run")):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path / "run")], check=True)
        team = experiment.begin(tmp_path / "run")
        assert team.end() == [2], team.texts()
        assert "error: nothing can be written in the workdir" in team.texts() and "Traceback" not in team.texts()
    experiment.finish(tmp_path / "run")
    assert_same_end(tmp_path / "run", alone)


def largest(step):
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(step):
    largest(step).write_bytes(largest(step).read_bytes()[:-1])


def flip(step):
    data = bytearray(largest(step).read_bytes())
    data[len(data) // 2] ^= 1
    largest(step).write_bytes(data)


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize("harm", [truncate, flip, empty, shutil.rmtree], ids=lambda harm: harm.__name__)
def test_a_damaged_checkpoint(experiment, alone, tmp_path, harm):
    """The one before it serves."""
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    (run / "stages" / "finetune.json").unlink()  # as if it had been stopped before it could say that it is done
    shutil.rmtree(run / "model")
    harm(run / "checkpoints" / "finetune" / str(STEPS["finetune"]))
    team = experiment.finish(run)
    assert ("is damaged" in team.texts()) == (harm is not shutil.rmtree)
    assert f"continuing after step {STEPS['finetune'] - 5}" in team.texts(), team.texts()
    assert_same_end(run, alone)
