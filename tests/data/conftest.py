"""Fixtures of the data tests: small image folders."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def write_images():
    """A function that writes `folder/<class>/<number>.png` of random pixels; `counts`: class -> number of images."""
    def write(folder, counts, size=(10, 12), seed=0):
        generator = np.random.default_rng(seed)
        for name, count in counts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
        return folder

    return write


@pytest.fixture
def image_folder(tmp_path, write_images):
    return write_images(tmp_path / "images", {"cat": 7, "dog": 5, "owl": 6})
