"""The measured section of docs/adaptation.md is made of what runs left."""

import json
import shutil

import pytest
import tiny_experiment
from tiny_experiment import ROOT

from transfer_jax.core.config import load_module
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report.measured_page import BEGIN, END


@pytest.fixture
def script(tmp_path, monkeypatch):
    module = load_module(ROOT / "configs" / "adaptation" / "write_page.py")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "adaptation.md", tmp_path / "docs")
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    return module


def test_a_run_becomes_a_section_and_others_stay(script, digits_file, tmp_path, capsys):
    target = {**tiny_experiment.config(digits_file)["streams"]["test"], "domain": "photo"}
    validation = {"target": "there", "task": "digits"}
    values = tiny_experiment.config(digits_file, {
        "seeds": (0, 1), "streams.there": {**target, "split": "test"}, "stages.pretrain.validation": validation,
        "stages.pretrain.evaluate": {"there": "digits"}, "stages.pretrain.eval_every": 3,
        "report": {"title": "Digits", "streams": ("there",)}})
    values["stages"] = {"pretrain": {**values["stages"]["pretrain"], "tags": {"method": "DANN"}}}
    tiny_experiment.run(values, tmp_path / "runs" / "mnist_usps")
    (tmp_path / "runs" / "mnist_usps" / "report.html").touch()  # as the command leaves it
    page = tmp_path / "docs" / "adaptation.md"
    page.write_text(page.read_text().partition(BEGIN)[0] + BEGIN
                    + "<!-- run test_time -->\nof an earlier day\n\n" + END + "after\n")
    script.main([str(tmp_path / "runs")])
    text = page.read_text()
    assert "### Digits: MNIST to USPS" in text and "| DANN | " in text and "91.7" in text and "last" in text
    assert text.index("### Digits: MNIST") < text.index("of an earlier day") and text.endswith("after\n")
    assert (tmp_path / "docs" / "figures").is_dir() and "written" in capsys.readouterr().out
    script.main([str(tmp_path / "runs")])
    assert page.read_text() == text
    check_sweep(script, tmp_path, text)


def check_sweep(script, tmp_path, text):
    """The same run as the only one of a sweep gives the same section; a sweep that has not ended gives none."""
    (tmp_path / "sweeps").mkdir()
    shutil.move(tmp_path / "runs" / "mnist_usps", tmp_path / "sweeps" / "mnist_usps" / "recipes=DANN")
    told = tmp_path / "sweeps" / "mnist_usps" / "sweep.json"
    told.write_text(json.dumps({"runs": [{"name": "recipes=DANN"}, {"name": "recipes=MCC"}]}))
    with pytest.raises(UserError, match="no finished run"):
        script.main([str(tmp_path / "sweeps")])
    told.write_text(json.dumps({"runs": [{"name": "recipes=DANN"}]}))
    page = tmp_path / "docs" / "adaptation.md"
    page.write_text(page.read_text().replace("| DANN | 0.", "| changed | 0."))
    assert page.read_text() != text
    script.main([str(tmp_path / "sweeps")])
    assert page.read_text() == text


def test_an_empty_folder_is_told(script, tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        script.main([str(tmp_path)])
