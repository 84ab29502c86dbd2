"""metrics.jsonl is exact, deterministic and can be rewound; TensorBoard itself reads the events."""

import json

import ml_dtypes
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from transfer_jax.core.errors import UserError
from transfer_jax.training.writers import MetricWriter, read_metrics


def _run(workdir, start=0, stop=6, **options):
    with MetricWriter(workdir, **options) as writer:
        if start:
            writer.rewind("tune", start)
        for step in range(start + 1, stop + 1):
            writer.write("tune", step, "train", {"loss": np.float32([1 / step, 2 / step])})
            if step % 3 == 0:
                writer.write("tune", step, "eval", {"accuracy": np.float32([0.1 * step, 0.5])}, "target_test")


def test_lines_are_as_documented_and_short(tmp_path):
    _run(tmp_path, stop=3, tensorboard=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[2] == {"stage": "tune", "step": 3, "kind": "train", "metrics": {"loss": [0.33333334, 0.6666667]}}
    assert lines[3]["stream"] == "target_test" and lines[3]["kind"] == "eval"
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_values_survive_the_round_trip_bit_for_bit(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=200).astype(dtype)
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write("a", 1, "train", {"x": values, "n": np.arange(3)})
    read = read_metrics(tmp_path)[0]["metrics"]
    assert (np.asarray(read["x"]).astype(dtype) == values).all()
    assert read["n"] == [0, 1, 2] and isinstance(read["n"][0], int)


def test_nonfinite_values_are_null_in_valid_json_and_come_back(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write("a", 1, "train", {"loss": [np.nan, 1.0, np.inf, -np.inf], "fine": 1.0})

    def refuse(name):
        raise AssertionError(name)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["metrics"]["loss"] == [None, 1.0, None, None]
    assert line["nonfinite"] == {"loss": ["nan", None, "inf", "-inf"]}
    np.testing.assert_array_equal(read_metrics(tmp_path)[0]["metrics"]["loss"], [np.nan, 1.0, np.inf, -np.inf])


@pytest.mark.parametrize("tear", [b"", b'{"stage": "tune", "st'])
def test_a_killed_and_resumed_run_leaves_the_same_bytes(tmp_path, tear):
    _run(tmp_path / "whole")
    _run(tmp_path / "broken", stop=5)
    with open(tmp_path / "broken" / "metrics.jsonl", "ab") as file:
        file.write(tear)
    _run(tmp_path / "broken", start=3)
    whole, broken = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "broken"))
    assert whole == broken


def test_a_torn_line_is_cut_off_before_the_next_write(tmp_path):
    _run(tmp_path, stop=2, tensorboard=False)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"stage"')
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write("tune", 3, "train", {"loss": [1.0]})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_rewind_keeps_finished_stages_and_drops_later_ones(tmp_path):
    writer = MetricWriter(tmp_path)
    for stage in ("one", "two", "three"):
        for step in (0, 5):
            writer.write(stage, step, "train", {"loss": [0.0]})
    assert writer.rewind("two", 0) == 3
    assert [(line["stage"], line["step"]) for line in read_metrics(tmp_path)] == [("one", 0), ("one", 5), ("two", 0)]
    assert writer.rewind("new", -1) == 0
    assert writer.rewind("two", -1, finished=["one"]) == 1
    assert writer.rewind("one", -1, finished=[]) == 2
    assert read_metrics(tmp_path) == []


def test_damage_in_the_middle_names_file_and_line(tmp_path):
    _run(tmp_path, stop=3, tensorboard=False)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "garbage\n" + lines[2])
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="missing"):
        read_metrics(tmp_path / "nowhere")


def test_tensorboard_reads_means_and_seeds(tmp_path):
    _run(tmp_path, per_seed=True)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "tune")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "eval/target_test/accuracy"}
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars("train/loss")[1].value == pytest.approx(0.75)
    seed = EventAccumulator(str(tmp_path / "tensorboard" / "tune" / "seed1")).Reload()
    assert seed.Scalars("train/loss")[3].value == pytest.approx(0.5)


def test_tensorboard_sees_no_step_twice_after_a_rewind(tmp_path):
    _run(tmp_path, stop=5)
    with MetricWriter(tmp_path) as writer:
        writer.write("later", 1, "train", {"loss": [1.0]})
    _run(tmp_path, start=3)
    tune = EventAccumulator(str(tmp_path / "tensorboard" / "tune")).Reload()
    assert [e.step for e in tune.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    later = EventAccumulator(str(tmp_path / "tensorboard" / "later")).Reload()
    assert later.Scalars("train/loss") == []


def test_a_disabled_writer_leaves_nothing(tmp_path):
    _run(tmp_path / "run", enabled=False)
    assert not (tmp_path / "run").exists()


def test_a_train_line_takes_no_stream(tmp_path):
    with pytest.raises(ValueError, match="stream"):
        MetricWriter(tmp_path).write("a", 1, "train", {}, stream="x")
    with pytest.raises(ValueError, match="stream"):
        MetricWriter(tmp_path).write("a", 1, "eval", {})
