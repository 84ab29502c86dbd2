"""The measured section of docs/multitask.md is made of what runs left."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_experiment import ROOT

from transfer_jax.core.config import load_module
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report.collect import Result, Run


@pytest.fixture
def script(tmp_path, monkeypatch):
    module = load_module(ROOT / "configs" / "multitask" / "write_page.py")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "multitask.md", tmp_path / "docs")
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    return module


def invented(name, ways, reference="trained alone"):
    tasks = {"digits_test": "accuracy", "scenes_test": "mean_iou"}
    results = [Result(name, way, stream, "last", {"method": way}, {metric: np.array([level, level + 0.1])}, {}, None,
                      ()) for way, level in ways.items() for stream, metric in tasks.items()]
    metrics = [{"kind": "train", "stage": way, "step": step, "metrics": {"weight_digits": [0.1, 0.2]}}
               for way in ways for step in (1, 2)]
    return Run(name, Path(), {"report": {"tasks": tasks, "reference": reference, "metric": "mean_iou"}},
               {way: {"title": way} for way in ways}, results, metrics)


def test_runs_are_joined_and_become_one_section(script):
    runs = [invented("combinations", {"trained alone": 0.5, "fixed": 0.6, "FAMO": 0.4}),
            invented("combinations_more", {"fixed": 0.9, "MGDA": 0.7})]
    runs[0].metrics.append({"kind": "train", "stage": "MGDA", "step": 1, "metrics": {}})  # broken off in that one
    run = script.joined(runs)
    assert [line["step"] for line in run.metrics if line["stage"] == "MGDA"] == [1, 2] and run.metrics[-1]["metrics"]
    assert list(run.stages) == ["trained alone", "fixed", "FAMO", "MGDA"] and len(run.results) == 8
    text = script.section("combinations", {"": run})
    assert "| fixed | 0.650" in text and "| MGDA | 0.750" in text  # the first run's, where both have a way
    assert {path.name for path in (script.DOCS / "figures").iterdir()} == {
        "multitask_trade_combinations.svg", "multitask_terms_combinations_FAMO.svg",
        "multitask_terms_combinations_MGDA.svg"}


def test_the_page_of_sharing_tells_what_every_way_costs(script):
    run, other = (invented("sharing", {"single networks": alone, "hard sharing": shared}, "single networks")
                  for alone, shared in ((0.5, 0.6), (0.8, 0.4)))
    run.stages["alone_too"] = {"title": "single networks"}
    for number, facts in enumerate(run.stages.values()):
        facts |= {"trainable": 1000 * (number + 1), "seconds": 2.4}
    run.metrics.append({"kind": "train", "stage": "hard sharing", "step": 3, "metrics": {
        f"affinity/{a}/{b}": [0.01, 0.02] for a in ("digits", "scenes") for b in ("digits", "scenes")}})
    text = script.section("sharing", {"": run, "batch": other})
    assert "| hard sharing | +18.3 ± 21.2 | -47.2 ± 35.3 |" in text  # t(1) = 12.7
    assert "| single networks | 2 | 4,000 | 5 |" in text and "| hard sharing | 1 | 2,000 | 2 |" in text
    assert "digits + scenes" in text and "multitask_affinity_sharing_hard_sharing.svg" in text


def test_answers_are_drawn_one_below_the_other(script, tmp_path):
    run = dataclasses.replace(invented("camvid", {"a": 0.5}), path=tmp_path)
    with pytest.raises(UserError, match="no drawn answers of stage 'a'"):
        script.examples(run, "a", "scenes")
    masks = np.zeros((5, 56, 60), np.uint8)
    (tmp_path / "predictions" / "a").mkdir(parents=True)
    np.savez(tmp_path / "predictions" / "a" / "scenes.npz", masks_true=masks, masks_predicted=masks + 1,
             thumbnails=np.zeros((5, 56, 60, 3), np.uint8))
    picture = np.asarray(Image.open(io.BytesIO(script.examples(run, "a", "scenes"))))
    assert picture.shape == (3 * 2 * 56, 2 * 182, 3)
    assert picture[:, -100:].any() and not picture[:, :100].any()


def test_an_empty_folder_is_told(script, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        script.main([str(tmp_path)])
