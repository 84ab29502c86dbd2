"""`embed`, `probe` and `rank` as a user runs them, on a small run and on small images."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import weightedtau
from sklearn.datasets import load_digits
from tiny_experiment import ROOT, command, config, read_json, write_config

from transfer_jax.experiment.feature_files import Features


def succeeded(name, *flags):
    done = command(name, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(digits_file, tmp_path_factory):
    """A run of 400 and 1 steps, a config of it, and a run that has hardly begun."""
    folder = tmp_path_factory.mktemp("sources")
    values = config(digits_file, {"checkpoint_every": 0, "log_every": 100, "stages.pretrain.steps": 400,
                                  "streams.train.batch_size": 32, "model.backbones.backbone.widths": (8, 24)})
    del values["stages"]["finetune"]
    values["stages"]["head"]["steps"] = 1
    path = write_config(folder / "config", values)
    succeeded("train", "--config", path, "--workdir", folder / "good", "--quiet")
    values["stages"] = {"pretrain": {**values["stages"]["pretrain"], "steps": 1, "lr": 1e-4}}
    succeeded("train", "--config", write_config(folder / "short", values), "--workdir", folder / "poor", "--quiet")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders of three digits, 24 each, of rows that the runs have not seen."""
    folder, found = tmp_path_factory.mktemp("images"), load_digits()
    for digit in (3, 5, 8):
        (folder / f"digit{digit}").mkdir()
        for row in np.flatnonzero(found.target[400:] == digit)[:24] + 400:
            Image.fromarray(np.rint(found.images[row] * 255 / 16).astype(np.uint8)).save(
                folder / f"digit{digit}" / f"{row}.png")
    return folder


def test_embed_a_config_and_a_run(trained, tmp_path):
    said = succeeded("embed", "--config", trained / "config" / "config.py", "--tap", "pooled", "heads/digits", "--out",
                     tmp_path / "fresh")
    assert "train: 240 x 34 features" in said and "test: 60 x 34 features" in said
    found = {}
    for stage in ("pretrain", "head"):
        succeeded("embed", "--workdir", trained / "good", "--stage", stage, "--tap", "pooled", "heads/digits",
                  "--stream", "test", "--out", tmp_path / stage)
        assert not (tmp_path / stage / "train").exists()
        found[stage] = Features(tmp_path / stage / "test")
    fresh = Features(tmp_path / "fresh" / "test")
    assert not np.allclose(fresh.tap("pooled"), found["pretrain"].tap("pooled"))
    np.testing.assert_array_equal(found["head"].tap("pooled"), found["pretrain"].tap("pooled"))
    assert not np.allclose(found["head"].tap("heads/digits"), found["pretrain"].tap("heads/digits"))
    measured = read_json(trained / "good" / "results.json")[-1]["metrics"]["accuracy"][0]
    answers = found["head"].tap("heads/digits").argmax(1)
    assert (answers == found["head"].y).mean() == pytest.approx(measured)


def test_probe_of_a_run_of_folders_and_without_a_test_set(trained, tmp_path):
    flags = ("--method", "ridge", "lda", "knn", "few_shot", "--shots", "1", "5", "--few_shot", "nearest_mean",
             "--episodes", "20")
    text = succeeded("probe", "--workdir", trained / "good", *flags, "--out", tmp_path / "run.json")
    rows = read_json(tmp_path / "run.json")
    assert [row["method"] for row in rows] == ["ridge", "lda", "knn", "nearest_mean, 1 shot", "nearest_mean, 5 shots"]
    for row in rows:
        assert row["low"] < row["accuracy"] < row["high"] and f"{row['accuracy']:.4f}" in text
    assert rows[0]["count"] == 60 and rows[0]["accuracy"] > 0.5
    succeeded("embed", "--workdir", trained / "good", "--out", tmp_path / "f")
    succeeded("probe", "--features", tmp_path / "f" / "train", "--test", tmp_path / "f" / "test", *flags, "--out",
              tmp_path / "folders.json")
    assert read_json(tmp_path / "folders.json") == rows
    succeeded("probe", "--features", tmp_path / "f" / "test", "--method", "ridge", "--out", tmp_path / "crossed.json")
    assert read_json(tmp_path / "crossed.json")[0]["count"] == 60


def test_rank_orders_sources_and_compares_with_the_truth(trained, images, tmp_path):
    sources = [trained / "poor" / "model", trained / "good" / "model"]
    text = succeeded("rank", "--weights", *sources, "--data", images, "--args",
                     "holdout=50,recipe=finetune,epochs=2,batch_size=12", "--finetune", "--workdir", tmp_path / "runs",
                     "--out", tmp_path / "rank.json")
    found = read_json(tmp_path / "rank.json")
    assert found["order"] == ["2-model", "1-model"] and "weighted tau" in text and "mean rank" in text
    above = text.split("sources for")[0]  # a line a source, and no reports of loading
    assert all(f"{name}: trained, accuracy" in above for name in found["order"]) and "taken over" not in above
    good, poor = (found["sources"][name] for name in found["order"])
    assert good["scores"].keys() == poor["scores"].keys() and {"leep", "logme", "linear_probe", "knn_probe"} <= set(
        good["scores"])
    assert len(good["scores"]) == 12 and f"{good['scores']['logme']:.4f}" in text
    assert good["scores"]["linear_probe"] > poor["scores"]["linear_probe"]
    result = read_json(tmp_path / "runs" / "2-model" / "results.json")[-1]
    assert good["finetuned"] == pytest.approx(result["metrics"]["accuracy"][0])
    for name, tau in found["weighted_tau"].items():
        pairs = [(source["scores"][name], source["finetuned"]) for source in found["sources"].values()]
        expected = weightedtau(*zip(*pairs, strict=True)).statistic
        assert tau == pytest.approx(expected) if np.isfinite(expected) else tau is None


def test_rank_takes_another_config_and_scores_the_examples_of_each_seed(trained, images, tmp_path):
    config = tmp_path / "own.py"
    config.write_text(f"""
from transfer_jax.core.config import load_config

def get_config(arg):
    found = load_config(f"{ROOT}/configs/finetune.py:{{arg}}")
    for stream in found.streams.values():
        stream.split_seed = None  # drawn from the seeds
    return found
""")
    sources = [trained / "poor" / "model", trained / "good" / "model"]
    text = succeeded("rank", "--config", config, "--weights", *sources, "--data", images, "--args",
                     "holdout=50,seeds=2", "--out", tmp_path / "rank.json")
    found = read_json(tmp_path / "rank.json")["sources"]["2-model"]
    first, second = found["scores_by_seed"]
    low, high = found["intervals"]["linear_probe"]
    assert low < found["scores"]["linear_probe"] < high
    assert first["logme"] != second["logme"] and found["config"].startswith(f"{config}:data=")
    assert found["scores"]["logme"] == pytest.approx((first["logme"] + second["logme"]) / 2)
    assert f"{found['scores']['logme']:.4f}" in text and found["finetuned_by_seed"] == []


@pytest.mark.parametrize(("name", "flags", "message"), [
    ("embed", ("--config", "CONFIG", "--stream", "tset"), "unknown stream 'tset' in the experiment; did you"),
    ("embed", ("--config", "CONFIG", "--tap", "poled"), "did you mean 'pooled'?"),
    ("embed", ("--config", "CONFIG", "--pool", "avg"), "unknown pool 'avg'; valid: cls, max, mean, none."),
    ("embed", ("--config", "CONFIG", "--stage", "head"), "a config has no results yet"),
    ("embed", ("--config", "CONFIG", "--workdir", "RUN"), "give either --config"),
    ("embed", (), "give either --config"),
    ("embed", ("--workdir", "RUN", "--stage", "haed"), "unknown stage 'haed'"),
    ("embed", ("--workdir", "RUN", "--config.name=x"), "the run of --workdir is as it was trained"),
    ("embed", ("--workdir", "RUN", "--model_seed", "7"), "there is no seed 7; the experiment has 0"),
    ("embed", ("--workdir", "NOWHERE"), "holds no run"),
    ("embed", ("--config", "CONFIG", "--out", "CONFIG"), "config.py"),
    ("probe", ("--config", "CONFIG", "--train", "tran"), "unknown stream 'tran'"),
    ("probe", ("--config", "CONFIG", "--test", "train"), "train and test share 240 examples"),
    ("probe", ("--config", "CONFIG", "--method", "rigde"), "unknown method 'rigde'; did you mean 'ridge'?"),
    ("probe", ("--config", "CONFIG", "--method", "few_shot", "--shots", "500"), "500 shots: the smallest class to"),
    ("probe", ("--config", "CONFIG", "--method", "ridge", "--folds", "1"), "needs 2 or more"),
    ("probe", ("--features", "NOWHERE"), "holds no features"),
    ("probe", ("--features", "NOWHERE", "--tap", "stage1"), "--features are features already"),
    ("rank", ("--weights", "A", "--data", "D"), "give two or more sources"),
    ("rank", ("--weights", "A", "B", "--data", "D", "--finetune"), "--finetune and --workdir belong together"),
    ("rank", ("--weights", "A", "B,source_classes=x", "--data", "D"), "is no number of classes"),
    ("rank", ("--weights", "A", "B", "--data", "D", "--config.lr=1"), "with --args"),
    ("rank", ("--weights", "A", "B", "--data", "D", "--config", "NOWHERE"), "NOWHERE' does not exist"),
    ("rank", ("--weights", "NOWHERE", "RUN/model", "--data", "NOWHERE"), "NOWHERE"),
    ("rank", ("--weights", "RUN/model", "RUN/model,backbon=x", "--data", "IMAGES"), "did you mean 'backbone'?"),
])
def test_mistakes_are_one_sentence(trained, images, tmp_path, name, flags, message):
    places = {"CONFIG": trained / "config" / "config.py", "RUN": trained / "good", "IMAGES": images}
    for word, place in places.items():
        flags = [flag.replace(word, str(place)) for flag in flags]
    done = command(name, *(flag.replace("NOWHERE", str(tmp_path / "NOWHERE")) for flag in flags))
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]  # what is above are lines about features that were made before
    assert said.startswith("error: ") and message in said and "Traceback" not in done.stderr, done.stderr
