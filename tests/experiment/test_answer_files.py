"""What `predict` writes of several classes, points, maps and images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.answer_files import point_rows, tag_rows, write_files

PATHS = (Path("x/a.png"), Path("y/a.png"))


def test_rows_name_classes_and_points():
    tags = [{"prediction": np.array(p), "probabilities": np.array(q)} for p, q in (
        ([1, 0, 1], [0.75, 0.25, 0.5]), ([0, 0, 0], [0, 0.25, 0]))]
    rows = tag_rows(list(zip(PATHS, tags, strict=True)), ("cat", "dog", "owl"))
    assert rows[0] == {"path": "x/a.png", "classes": "cat;owl", "p(cat)": 0.75, "p(dog)": 0.25, "p(owl)": 0.5}
    assert rows[1]["classes"] == ""
    points = [{"prediction": np.array([[0.25, 0.5, 1], [0.75, 0.125, 0.5]])}] * 2
    row = point_rows(list(zip(PATHS, points, strict=True)), ("nose", "tail"))[1]
    assert row == {"path": "y/a.png", "nose_x": 0.25, "nose_y": 0.5, "nose_share": 1, "tail_x": 0.75, "tail_y": 0.125,
                   "tail_share": 0.5}


def test_maps_are_numbers_and_images_pixels(tmp_path):
    values = np.random.default_rng(0).uniform(-1, 3, (2, 4, 5, 1)).astype(np.float32)
    answers = [(path, {"prediction": one}) for path, one in zip(PATHS, values, strict=True)]
    write_files(tmp_path / "far", answers, "depths", {})
    np.testing.assert_array_equal(np.load(tmp_path / "far" / "00001_a.npy"), values[1])
    write_files(tmp_path / "seen", answers, "images", {"mean": 0.5, "std": 0.25})
    pixels = np.asarray(Image.open(tmp_path / "seen" / "00000_a.png"))
    np.testing.assert_allclose(pixels, np.clip(values[0, ..., 0] * 0.25 + 0.5, 0, 1) * 255, atol=0.51)
    with pytest.raises(UserError, match="folder"):
        write_files(tmp_path / "far.csv", answers, "depths", {})
