"""The commands end to end, on a user's own image folder, table and array file."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny_experiment import ROOT, command, config, process, read_json, write_config

from transfer_jax.experiment.feature_files import Features

CLASSES = ("one", "two", "zero")  # as sorted names; the digit of each:
DIGITS = {"one": 1, "two": 2, "zero": 0}


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """A folder `train|test/<class>/<n>.png` of grey digits, and a table and an array file of the same images."""
    folder = tmp_path_factory.mktemp("own") / "images"
    found = load_digits()
    rows, arrays = [], {}
    for split, start, count in (("train", 0, 20), ("test", 20, 7)):
        images, labels = [], []
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            chosen = np.flatnonzero(found.target == DIGITS[name])[start:start + count]
            for number, row in enumerate(chosen):
                image = np.rint(found.images[row] * 255 / 16).astype(np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{number:03}.png")
                rows.append((f"images/{split}/{name}/{number:03}.png", name, split))
                images.append(image)
                labels.append(label)
        arrays |= {f"{split}_image": np.stack(images), f"{split}_label": np.array(labels, np.int32)}
    with open(folder.parent / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    np.savez(folder.parent / "arrays.npz", **arrays)
    return folder.parent


def sources(own_data):
    return {"folder": {"kind": "folder", "path": str(own_data / "images")},
            "table": {"kind": "table", "path": str(own_data / "table.csv")},
            "arrays": {"kind": "arrays", "path": str(own_data / "arrays.npz"), "class_names": CLASSES}}


def experiment(own_data, kind):
    """Two stages of 30 steps on the user's data; the second keeps a best record."""
    source = sources(own_data)[kind]
    values = config("unused", {"streams.train.data": source, "streams.test.data": source, "checkpoint_every": 10,
                               "keep_checkpoints": 9, "log_every": 10})
    stages = values["stages"]
    values["stages"] = {"pretrain": {**stages["pretrain"], "steps": 30},
                        "finetune": {**stages["finetune"], "init": "pretrain", "steps": 30, "eval_every": 10,
                                     "best": {"stream": "test"}}}
    return values


@pytest.fixture(scope="module")
def runs(own_data):
    """Workdirs of the same training on the three forms of data, by name."""
    for kind in sources(own_data):
        path = write_config(own_data / f"config_{kind}", experiment(own_data, kind))
        run = process if kind == "folder" else command
        done = run("train", "--config", path, "--workdir", own_data / kind)
        assert done.returncode == 0, done.stderr
        assert "report.html" in done.stdout and "accuracy" in done.stdout
    return {kind: own_data / kind for kind in sources(own_data)}


def test_a_run_leaves_what_it_promises(runs):
    for name in ("config.json", "params.txt", "metrics.jsonl", "results.json", "stages.json", "report.md",
                 "report.html", "model/parameters.safetensors", "model/model.json", "checkpoints/finetune/30"):
        assert (runs["folder"] / name).exists(), name
    assert list((runs["folder"] / "tensorboard" / "finetune").glob("events.out.tfevents.*"))
    assert read_json(runs["folder"] / "model" / "model.json")["tasks"]["digits"]["class_names"] == list(CLASSES)
    assert "stage pretrain" in (runs["folder"] / "params.txt").read_text()


def test_folder_table_and_arrays_train_alike(runs):
    scores = {kind: [row["metrics"] for row in read_json(folder / "results.json")] for kind, folder in runs.items()}
    assert scores["folder"] == scores["table"] == scores["arrays"]
    assert scores["folder"][-1]["accuracy"][0] > 0.5


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def rescored(workdir, out, *flags):
    done = command("evaluate", "--workdir", workdir, "--json", out, *flags)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    return read_json(out)


def evaluations(workdir, stage):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"] for line in lines if (line["stage"], line["kind"]) == (stage, "eval")}


def test_evaluate_gives_again_what_training_measured(runs, tmp_path):
    workdir = runs["folder"]
    measured = evaluations(workdir, "finetune")
    final = rescored(workdir, tmp_path / "final.json")["test"]
    assert_close(final, measured[30])
    step = rescored(workdir, tmp_path / "step.json", "--step", 10)["test"]
    assert_close(step, measured[10])
    best = rescored(workdir, tmp_path / "best.json", "--best")["test"]["accuracy"][0]
    assert best == max(metrics["accuracy"][0] for metrics in measured.values())
    other = rescored(workdir, tmp_path / "other.json", "--stage", "pretrain")["test"]
    assert_close(other, evaluations(workdir, "pretrain")[30])


def test_evaluate_refuses_what_is_not_there(runs):
    for flags, message in [(("--step", 11), "no checkpoint of step 11"), (("--stage", "finetun"), "'finetune'?"),
                           (("--stage", "pretrain", "--best"), "keeps no best parameters")]:
        done = command("evaluate", "--workdir", runs["folder"], *flags)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def predicted(workdir, out, *inputs):
    done = command("predict", "--workdir", workdir, "--out", out, "--input", *inputs)
    assert done.returncode == 0, done.stderr
    if out.suffix == ".json":
        return read_json(out)
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_evaluation(runs, own_data, tmp_path):
    """Class, confidence and order of every test image equal what the stage's evaluation kept, from all three inputs."""
    folder = own_data / "images" / "test"
    rows = predicted(runs["folder"], tmp_path / "all.json", folder)
    with np.load(runs["folder"] / "predictions" / "finetune" / "test.npz") as kept:
        order = np.argsort(kept["index"])
        assert [row["class"] for row in rows] == [CLASSES[number] for number in kept["prediction"][order]]
        np.testing.assert_allclose([row["confidence"] for row in rows], kept["confidence"][order], atol=1e-5)
        right = [row["class"] == row["path"].split("/")[-2] for row in rows]
    assert np.mean(right) == pytest.approx(read_json(runs["folder"] / "results.json")[1]["metrics"]["accuracy"][0])
    for row in rows:
        assert sum(row[f"p({name})"] for name in CLASSES) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == max(row[f"p({name})"] for name in CLASSES) == row[f"p({row['class']})"]
    mixed = predicted(runs["folder"], tmp_path / "mixed.csv", folder / "one" / "000.png", folder / "t*" / "00[12].png")
    by_path = {row["path"]: row for row in rows}
    assert [row["path"].split("/")[-2:] for row in mixed] == [["one", "000.png"], ["two", "001.png"],
                                                             ["two", "002.png"]]
    for row in mixed:
        assert row["class"] == by_path[row["path"]]["class"]
        assert float(row["p(one)"]) == pytest.approx(by_path[row["path"]]["p(one)"], abs=1e-6)


def test_an_unreadable_image_is_named_or_skipped(runs, own_data, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = own_data / "images" / "test" / "one" / "000.png"
    refused = command("predict", "--workdir", runs["folder"], "--input", bad, good)
    assert refused.returncode == 2 and str(bad) in refused.stderr and refused.stderr.count("\n") == 1
    skipped = command("predict", "--workdir", runs["folder"], "--skip_bad", "--input", bad, good)
    assert skipped.returncode == 0 and str(bad) in skipped.stderr
    assert len(skipped.stdout.splitlines()) == 2 and skipped.stdout.startswith("path,class,confidence,p(one)")


def test_reports_are_rebuilt_and_merged(runs, tmp_path):
    before = (runs["folder"] / "report.md").read_text()
    (runs["folder"] / "report.md").unlink()
    (runs["folder"] / "report.html").unlink()
    done = command("report", "--workdir", runs["folder"])
    assert done.returncode == 0, done.stderr
    assert (runs["folder"] / "report.md").read_text() == before and (runs["folder"] / "report.html").exists()
    done = command("report", "--workdir", runs["folder"], runs["table"], "--out", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "merged" / "report.md").read_text()
    assert "folder" in text and "table" in text
    assert not (tmp_path / "merged" / "config.json").exists()


def test_four_devices_answer_as_one_does_also_on_ragged_ends(runs, own_data, tmp_path):
    workdir, images = runs["folder"], own_data / "images" / "test"  # 21 images
    one, four = tmp_path / "one", tmp_path / "four"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    four.mkdir()
    done = subprocess.run([sys.executable, Path(__file__).with_name("on_four_devices.py"), workdir, images, four],
                          capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one.mkdir()
    assert command("evaluate", "--workdir", workdir, "--json", one / "scores.json").returncode == 0
    assert command("predict", "--workdir", workdir, "--input", images, "--out", one / "answers.csv").returncode == 0
    assert command("embed", "--workdir", workdir, "--stream", "test", "--out", one / "features").returncode == 0
    scores = [read_json(folder / "scores.json")["test"] for folder in (one, four)]
    assert scores[0].keys() == scores[1].keys()
    for name, values in scores[0].items():
        np.testing.assert_allclose(scores[1][name], values, atol=1e-6, err_msg=name)
    answers = [list(csv.DictReader(open(folder / "answers.csv"))) for folder in (one, four)]
    assert len(answers[0]) == 21 and [row["path"] for row in answers[0]] == [row["path"] for row in answers[1]]
    np.testing.assert_allclose([float(row["confidence"]) for row in answers[1]],
                               [float(row["confidence"]) for row in answers[0]], atol=1e-5)
    first, second = (Features(folder / "features" / "test") for folder in (one, four))
    assert len(first) == len(second) == 21
    np.testing.assert_allclose(second.x, first.x, atol=1e-5)
