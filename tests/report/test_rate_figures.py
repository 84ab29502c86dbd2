"""The figure of a range test in its three forms."""

import io

import numpy as np
import pytest
from PIL import Image

from transfer_jax.experiment.range_test import RangeTest
from transfer_jax.experiment.report.rates import write_rates


@pytest.mark.parametrize("suffix", [".html", ".svg", ".png"])
def test_each_suffix_gives_its_form(suffix, tmp_path):
    rates = np.geomspace(1e-5, 1, 60)
    losses = 2.3 - 1.5 / (1 + np.exp(-3 * (np.log10(rates) + 3))) + np.maximum(0, np.log10(rates) + 1) ** 2
    out = tmp_path / "deep" / f"rates{suffix}"
    write_rates(RangeTest(rates.tolist(), [np.full(2, loss) for loss in losses]), "head", out)
    content = out.read_bytes()
    if suffix == ".png":
        assert np.asarray(Image.open(io.BytesIO(content)).convert("L")).std() > 5
    else:
        assert (b"<svg" in content) == (suffix == ".svg") and b"steepest" in content
