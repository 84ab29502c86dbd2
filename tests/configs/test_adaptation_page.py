"""The page of classical adaptation is made from what the command writes; its domains from the standard data sets."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_experiment import ROOT

from transfer_jax.core.config import load_module
from transfer_jax.core.errors import UserError
from transfer_jax.experiment.domain_files import read_folder

SHARED = Path(os.environ.get("TRANSFER_JAX_DATA", ROOT.parent / "shared" / "data")) / "datasets"
needs_data = pytest.mark.skipif(
    not (SHARED / "office_caltech10_surf").is_dir() or not (SHARED / "amazon_text").is_dir(),
    reason=f"the standard data sets office_caltech10_surf and amazon_text are absent ({SHARED}); set TRANSFER_JAX_DATA")


@pytest.fixture
def script(tmp_path, monkeypatch):
    module = load_module(ROOT / "configs" / "adaptation" / "write_results.py")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    return module


def test_measured_and_published_values_stand_side_by_side(script, tmp_path, capsys):
    pairs = json.loads(script.PUBLISHED.read_text())["office_nn1"]["pairs"]
    rows = [{**dict(zip(("source", "target"), pair.split(), strict=True)), "method": method, "accuracy": accuracy,
             "seconds": 1.0} for pair in pairs for method, accuracy in (("none", 0.2370), ("coral", 0.5))]
    folder = tmp_path / "runs" / "office_nn1"
    folder.mkdir(parents=True)
    (folder / "adapt.json").write_text(json.dumps({"rows": rows}))
    assert script.main([str(tmp_path / "runs")]) == 0
    page = (tmp_path / "adaptation_classical.md").read_text()
    assert "| caltech to amazon | 23.70 (+0.00) | 50.00 |" in page, "coral has no published value with 1-NN"
    assert "| caltech to webcam | **23.70 (-2.06)** | 50.00 |" in page and "| seconds | 12 | 12 |" in page
    assert "coral: published value not found here" in page and "commit 0167fd36" in page
    assert (tmp_path / "figures" / "adaptation_classical_gains.svg").read_bytes().startswith(b"<?xml")


def test_a_folder_without_runs_is_one_sentence(script, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        script.main([str(tmp_path)])
    (tmp_path / "amazon").mkdir()
    (tmp_path / "amazon" / "adapt.json").write_text("{}")
    with pytest.raises(UserError, match="is not what"):
        script.main([str(tmp_path)])


@needs_data
def test_domains_of_the_standard_data_sets(tmp_path, monkeypatch):
    module = load_module(ROOT / "configs" / "adaptation" / "domains.py")
    monkeypatch.setenv("TRANSFER_JAX_DATA", str(SHARED.parent))
    assert module.main([str(tmp_path)]) == 0
    sizes = {domain.name: domain.x.shape for domain in read_folder(tmp_path / "office")}
    assert sizes == {"amazon": (958, 800), "caltech": (1123, 800), "dslr": (157, 800), "webcam": (295, 800)}
    for domain in read_folder(tmp_path / "amazon"):
        assert domain.x.shape == (2000, 400) and domain.x.min() == 0
        assert np.unique(domain.y, return_counts=True)[1].tolist() == [1000, 1000]
