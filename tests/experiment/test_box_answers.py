"""Boxes as `predict` writes them, and as a report draws them."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.prediction import write_boxes
from transfer_jax.experiment.report.boxes_figure import boxes_picture

FOUND = np.float32([[0.25, 0.5, 0.75, 1, 1, 0.875], [0, 0, 0.5, 0.25, 0, 0.125], [0, 0, 0, 0, -1, 0]])
ANSWERS = [(Path("a.png"), {"prediction": FOUND}), (Path("b.png"), {"prediction": FOUND[2:]})]


def test_a_row_a_box(tmp_path):
    write_boxes(tmp_path / "x.csv", ANSWERS, ("cat", "dog"))
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert [row["class"] for row in rows] == ["dog", "cat"] and rows[0]["path"] == "a.png"
    assert [float(rows[0][key]) for key in ("ymin", "xmin", "ymax", "xmax", "score")] == [0.25, 0.5, 0.75, 1, 0.875]
    write_boxes(tmp_path / "x.json", ANSWERS, ("cat", "dog"))
    found = json.loads((tmp_path / "x.json").read_text())
    assert len(found["a.png"]) == 2 and found["b.png"] == []
    with pytest.raises(UserError, match="csv or .json"):
        write_boxes(tmp_path / "folder", ANSWERS, ("cat", "dog"))


def test_the_picture_shows_objects_left_and_sure_answers_right():
    image = np.zeros((40, 40, 1), np.uint8)
    png = boxes_picture(image, FOUND[1:, :5], FOUND, {0: "cat", 1: "dog"})
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert pixels.shape == (240, 484, 3)
    left, right = pixels[:, :240].any(-1), pixels[:, 244:].any(-1)
    assert left[:120, :60].any() and not left[:, 120:].any()  # the cat; the padding is not drawn
    assert right[60:180, 120:].any() and not right[:, :60].any()  # the dog; the cat is not sure enough
