"""VOC: boxes from XML, masks, lists of names, errors that name the file."""

import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.data import open_source

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>" \
         "<ymax>{}</ymax></bndbox></object>"
MASK = np.kron(np.uint8([[0, 15], [255, 12]]), np.ones((10, 20), np.uint8))
OBJECTS = {"one": [("dog", 0, 1, 1, 40, 20), ("cat", 0, 11, 6, 30, 15), ("dog", 1, 1, 1, 2, 2)], "two": [],
           "three": [("person", 0, 5, 5, 8, 10)]}


def xml(objects, size="<width>40</width><height>20</height><depth>3</depth>"):
    return f"<annotation><size>{size}</size>{''.join(OBJECT.format(*one) for one in objects)}</annotation>"


@pytest.fixture
def folder(tmp_path):
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    for name, objects in OBJECTS.items():
        Image.fromarray(np.full((20, 40, 3), len(name), np.uint8)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "Annotations" / f"{name}.xml").write_text(xml(objects))
    mask = Image.fromarray(MASK, mode="P")
    mask.putpalette(range(256))
    mask.save(tmp_path / "SegmentationClass" / "one.png")
    (tmp_path / "ImageSets/Main/train.txt").write_text("one\ntwo  1\n\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("three\n")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("one\n")
    return tmp_path


def opened(folder, **arguments):
    return open_source(Component(kind="voc", path=str(folder), **arguments))


def test_boxes(folder):
    splits = opened(folder)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "val": 1}
    assert splits["train"].box_class_names == splits["val"].box_class_names == ("cat", "dog", "person")
    example = splits["train"].load(0)
    np.testing.assert_allclose(example["boxes"], [[0, 0, 1, 1], [0.25, 0.25, 0.75, 0.75]])
    assert example["box_labels"].tolist() == [1, 0] and splits["val"].load(0)["box_labels"].tolist() == [2]
    assert splits["train"].load(1)["boxes"].shape == (0, 4)
    assert len(opened(folder, difficult=True)["train"].load(0)["boxes"]) == 3
    ordered = opened(folder, class_names=("person", "dog", "cat"))["train"]
    assert ordered.load(0)["box_labels"].tolist() == [1, 2]


def test_masks(folder):
    train = opened(folder, labels="masks")["train"]
    assert train.class_names[:2] == ("background", "aeroplane") and len(train.class_names) == 21
    np.testing.assert_array_equal(train.load(0)["mask"], MASK)


@pytest.mark.parametrize(("file", "content", "arguments", "words"), [
    ("ImageSets/Main/val.txt", "four\n", {}, "no image 'four'"),
    ("Annotations/two.xml", None, {}, "two.xml' is missing"),
    ("Annotations/two.xml", "<annotation>", {}, "no whole annotation in VOC's format"),
    ("Annotations/two.xml", xml([], size=""), {}, "no whole annotation"),
    ("Annotations/two.xml", xml([], size="<width>0</width><height>0</height>"), {}, "its size is 0 x 0"),
    ("SegmentationClass/one.png", None, {"labels": "masks"}, "mask .* is missing"),
    ("JPEGImages/x.jpg", "", {"class_names": ("cat", "doge")}, "unknown class 'dog'.*did you mean 'doge'"),
])
def test_faults_name_the_file(folder, file, content, arguments, words):
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=words):
        opened(folder, **arguments)


def test_a_folder_without_lists(tmp_path):
    with pytest.raises(UserError, match="no list of images such as ImageSets/Main/train.txt"):
        opened(tmp_path)
