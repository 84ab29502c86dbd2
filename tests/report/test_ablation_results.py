"""The page of results is made from the files of runs; sections of runs that are not there stay."""

import json

import pytest
from synthetic_workdir import make_workdir
from tiny_experiment import ROOT

from transfer_jax.core.config import load_module
from transfer_jax.experiment import sweeping
from transfer_jax.experiment.ranking import Candidate, record


@pytest.fixture
def script(tmp_path, monkeypatch):
    module = load_module(ROOT / "configs" / "ablations" / "write_results.py")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    monkeypatch.setattr(sweeping, "finished", lambda folder: (folder / "results.json").is_file())
    return module


def test_sections_are_written_and_kept(script, tmp_path, capsys):
    make_workdir(tmp_path / "runs" / "distortion", seeds=3)
    assert script.main([str(tmp_path / "runs")]) == 0
    first = (tmp_path / "results.md").read_text()
    assert "Kumar et al. 2022" in first and "| full fine-tuning |" in first and first.count("<!-- ") == 1
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"distortion_accuracy_target_test.svg"} and f"](figures/{figures.pop()})" in first
    make_workdir(tmp_path / "others" / "learning_curves", seeds=3)
    assert script.main([str(tmp_path / "others")]) == 0
    both = (tmp_path / "results.md").read_text()
    assert both.index("learning_curves -->") < both.index("distortion -->")
    assert both.split("<!-- distortion -->")[1].strip() == first.split("<!-- distortion -->")[1].strip()


def test_the_finished_runs_of_a_sweep_stand_together(script, tmp_path):
    folder = tmp_path / "runs" / "distortion"
    for name in ("labels=5", "labels=100"):
        make_workdir(folder / name, seeds=3)
    names = ("labels=5", "labels=100", "labels=500")  # the last one is not done
    (folder / "sweep.json").write_text(json.dumps({"runs": [{"name": name} for name in names]}))
    assert script.main([str(tmp_path / "runs")]) == 0
    page = (tmp_path / "results.md").read_text()
    assert 0 < page.index("labels=5 |") < page.index("labels=100 |") and "labels=500" not in page


def test_rankings_are_a_section_of_their_own(script, tmp_path):
    folder = tmp_path / "runs" / "transferability" / "xrays"
    folder.mkdir(parents=True)
    found = [Candidate(name, "", of_seeds=[{"logme": score}], truths=(score, score / 2))
             for name, score in (("one", 0.4), ("other", 0.8))]
    (folder / "rank.json").write_text(json.dumps(record(found)))
    assert script.main([str(tmp_path / "runs")]) == 0
    page = (tmp_path / "results.md").read_text()
    assert "| logme | 1.00 ± 0.00 |" in page and "| other | **0.600 ± " in page
    assert "](figures/transferability_tau.svg)" in page and (tmp_path / "figures" / "transferability_tau.svg").is_file()
    (tmp_path / "later").mkdir()
    folder.parent.rename(tmp_path / "later" / "transferability_more")
    assert script.main([str(tmp_path / "later")]) == 0
    both = (tmp_path / "results.md").read_text()
    assert both.startswith(page.rstrip()) and both.count("| logme | 1.00 ± 0.00 |") == 2
    assert "](figures/transferability_more_tau.svg)" in both


def test_a_kept_section_has_the_docstring_of_today(script, tmp_path):
    make_workdir(tmp_path / "runs" / "distortion", seeds=3)
    script.main([str(tmp_path / "runs")])
    page = tmp_path / "results.md"
    written = page.read_text()
    page.write_text(written.replace("Kumar et al. 2022", "once upon a time"))
    make_workdir(tmp_path / "others" / "learning_curves", seeds=3)
    script.main([str(tmp_path / "others")])
    assert page.read_text().split("<!-- distortion")[1] == written.split("<!-- distortion")[1]


def test_a_folder_without_runs_is_one_sentence(script, tmp_path, capsys):
    assert script.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and not (tmp_path / "results.md").exists()
