"""Boxes of examples: bad ones, windows, padding, COCO files; and how they move with their image."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.data import Dataset, StreamSpec, open_source, open_stream
from transfer_jax.data.augment import build_plan
from transfer_jax.data.augment.boxes import cut
from transfer_jax.data.boxes import prepare_boxes
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.preprocessing import prepare_image
from transfer_jax.data.relabelling import keep_classes

WHOLE = dict(image_size=None, resize=None, fit="stretch", channels=None, interpolation="nearest")


def prepared(boxes, labels=None, most=3, size=(10, 20), classes=2, **description):
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    return prepare_boxes(np.array(boxes, float), labels, most, size, {**WHOLE, **description}, classes, "picture 7")


def test_boxes_are_cut_at_the_border_and_padded():
    found = prepared([[-0.5, 0.2, 0.5, 1.7], [0.2, 1.1, 0.4, 1.5], [0.3, 0.3, 0.3, 0.9]], [1, 0, 0])
    np.testing.assert_allclose(found, [[0, 0.2, 0.5, 1, 1], [0, 0, 0, 0, -1], [0, 0, 0, 0, -1]], atol=1e-6)
    assert found.dtype == np.float32
    assert (prepared([])[:, 4] == -1).all()


@pytest.mark.parametrize("boxes,labels,words", [
    ([[np.nan, 0, 1, 1]], [0], "not finite"), ([[0, 0, np.inf, 1]], [0], "not finite"),
    ([[0.5, 0, 0.2, 1]], [0], "end lies before its start"), ([[0, 0, 1, 1]], [2], "class 2"),
    ([[0, 0, 1, 1]], [-1], "class -1"), ([[0, 0, 1, 1]] * 4, [0] * 4, "raise 'boxes'"),
    ([[0, 0, 1, 1]], [0, 1], "1 boxes but 2 classes")])
def test_bad_boxes_name_the_picture(boxes, labels, words):
    with pytest.raises(UnreadableImage, match=f"picture 7 has .*{words}"):
        prepared(boxes, labels)


def marked(box, size):
    """An image of this size that is white inside the box (units), black elsewhere."""
    image = np.zeros((*size, 1), np.uint8)
    top, left, bottom, right = (round(edge * side) for edge, side in zip(box, (*size, *size), strict=True))
    image[top:bottom, left:right] = 255
    return image


def extent(image):
    bright = np.asarray(image).max(-1) > 0.5 * np.asarray(image).max()
    y, x = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    height, width = bright.shape
    return np.array([y[0] / height, x[0] / width, (y[-1] + 1) / height, (x[-1] + 1) / width])


@pytest.mark.parametrize("description", [
    dict(image_size=(32, 32)), dict(image_size=(32, 32), fit="crop"),
    dict(image_size=(24, 32), fit="crop", resize=40), dict(image_size=(24, 32), fit="cover", resize=(36, 36))])
def test_boxes_show_what_the_resized_image_shows(description):
    size, box = (60, 100), [0.3, 0.4, 0.7, 0.6]
    settings = {**WHOLE, **description}
    image = prepare_image(marked(box, size), settings)
    found = prepared([box], size=size, **description)[0, :4]
    np.testing.assert_allclose(found * np.tile(image.shape[:2], 2), extent(image) * np.tile(image.shape[:2], 2), atol=1)


MOVED = [("flip", dict(probability=1.0)), ("crop", dict(padding=6)), ("scale", dict(low=0.7, high=1.3)),
         ("random_resized_crop", dict(scale=(0.6, 1.0)))]


@pytest.mark.parametrize("kind,arguments", MOVED)
def test_boxes_follow_the_image_on_device_and_host(kind, arguments):
    box, size = [0.4, 0.35, 0.6, 0.65], (40, 60)
    plan = build_plan((Component(kind=kind, **arguments),), "here")
    image = np.repeat(marked(box, size), 3, -1)
    held = np.array([[*box, 1], [0, 0, 0, 0, -1]], np.float32)
    scale = np.tile(size, 2)
    run = jax.jit(lambda key: plan.apply({"image": jnp.float32(image / 255)[None], "boxes": held[None]}, key,
                                         jnp.arange(1), 2, True))
    shifts = []
    for seed in range(4):
        there = run(jax.random.key(seed))
        here = plan.apply_host({"image": image, "boxes": held}, np.random.default_rng(seed), size)
        for shown, boxes in ((there["image"][0], there["boxes"][0]), (here["image"], here["boxes"])):
            np.testing.assert_allclose(np.asarray(boxes)[0, :4] * scale, extent(shown) * scale, atol=1.1)
            np.testing.assert_array_equal(np.asarray(boxes)[1], [0, 0, 0, 0, -1])
            assert np.asarray(boxes).dtype == np.float32
        shifts.append(np.asarray(there["boxes"])[0, 0, :4])
    assert kind == "flip" or np.ptp(shifts, axis=0).max() > 0.01


def test_a_quarter_turn_turns_boxes():
    plan = build_plan((Component(kind="rotation", degrees=90.0),), "here")
    turned = plan.following[0].boxes(np.array([[0.1, 0.2, 0.3, 0.6, 1]], np.float32), lambda shape: 1.0, (10, 10), np)
    np.testing.assert_allclose(turned[0], [0.4, 0.1, 0.8, 0.3, 1], atol=1e-6)


def test_what_hardly_shows_is_dropped():
    boxes = np.array([[-0.5, 0, 0.5, 0.5, 0], [-0.9, 0, 0.1, 0.5, 0], [0.5, 0.5, 0.505, 0.9, 1]], np.float32)
    assert cut(boxes, (100, 100), np)[:, 4].tolist() == [0, -1, -1]


def test_mixing_images_with_boxes_is_refused():
    with pytest.raises(UserError, match="boxes"):
        build_plan((Component(kind="mixup"),), "here").check({"boxes": np.zeros((2, 5))}, "here")


@pytest.fixture
def coco(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((20, 40, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    content = dict(
        images=[dict(id=n + 5, file_name=f"{n}.png", height=20, width=40) for n in range(3)],
        categories=[dict(id=9, name="dog"), dict(id=3, name="cat")],
        annotations=[dict(image_id=5, category_id=9, bbox=[4, 5, 20, 10]),
                     dict(image_id=6, category_id=3, bbox=[0, 0, 40, 20], iscrowd=1)])
    (tmp_path / "a.json").write_text(json.dumps(content))
    return dict(kind="coco", images=str(tmp_path), annotations={"train": str(tmp_path / "a.json")})


def test_coco_files(coco):
    data = open_source(Component(**coco))["train"]
    assert data.box_class_names == ("cat", "dog") and len(data) == 3
    np.testing.assert_allclose(data.load(0)["boxes"], [[0.25, 0.1, 0.75, 0.6]])
    assert data.load(0)["box_labels"].tolist() == [1] and len(data.load(1)["boxes"]) == 0


@pytest.mark.parametrize("storage", ["device", "host"])
def test_a_stream_pads_boxes(coco, storage):
    stream = open_stream("pictures", StreamSpec(data=coco, batch_size=2, boxes=2, storage=storage), (0,))
    assert stream.box_class_names == ("cat", "dog")
    assert stream.example_shapes["boxes"] == ((2, 5), np.float32)


def test_coco_faults_are_one_sentence(coco, tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="no whole COCO file"):
        open_source(Component(**coco))
    with pytest.raises(UserError, match="no folder for it"):
        open_source(Component(**{**coco, "images": {}}))


def test_chosen_classes_of_boxes_are_numbered_anew(coco):
    data = open_source(Component(**coco))["train"]
    for classes, labels in ((("dog",), [[0], [], []]), (("dog", "cat"), [[0], [], []]), ((0,), [[], [], []])):
        stream = open_stream("pictures", StreamSpec(data=coco, batch_size=2, boxes=2, classes=classes), (0,))
        assert stream.box_class_names == (("cat",) if classes == (0,) else classes) and stream.size == 3
        found = stream.tables["boxes"]
        assert [row[row[:, 4] >= 0, 4].tolist() for row in found] == labels
    data._box_labels[0] = np.array([7])  # no class at all: whoever reads it on is told so
    assert keep_classes(data, ["cat"], "here").load(0)["box_labels"].tolist() == [7]
    with pytest.raises(UserError, match="unknown class 'cow' in here"):
        keep_classes(data, ["cow"], "here")


def test_masks_and_boxes_are_each_reduced_to_the_classes_that_they_have():
    class Scene(Dataset):
        class_names, box_class_names = ("road", "cat", "dog"), ("dog", "cat")

        def __len__(self):
            return 1

        def load(self, row):
            return {"image": np.zeros((1, 3, 3), np.uint8), "mask": np.array([[0, 1, 2]], np.int32),
                    "boxes": np.zeros((2, 4), np.float32) + [[0], [0.5]], "box_labels": np.array([0, 1])}

    both = keep_classes(Scene(), ["cat", "road"], "here")
    example = both.load(0)
    assert both.class_names == ("cat", "road") and both.box_class_names == ("cat",)
    assert example["mask"].tolist() == [[1, 0, 255]] and example["box_labels"].tolist() == [0]
    assert example["boxes"].tolist() == [[0.5] * 4]
    road = keep_classes(Scene(), ["road"], "here")
    assert road.box_class_names == ("dog", "cat") and road.load(0)["box_labels"].tolist() == [0, 1]


def test_merged_data_unite_the_classes_of_boxes(coco, tmp_path):
    content = json.loads((tmp_path / "a.json").read_text())
    content["categories"] = [dict(id=9, name="dog"), dict(id=3, name="bird")]
    (tmp_path / "b.json").write_text(json.dumps(content))
    other = {**coco, "annotations": {"train": str(tmp_path / "b.json")}}
    data = open_source(Component(kind="merge", parts=(coco, other), classes="union"))["train"]
    assert data.box_class_names == ("cat", "dog", "bird")
    assert [data.load(row)["box_labels"].tolist() for row in (0, 3)] == [[1], [1]]
    with pytest.raises(UserError, match="they have different classes"):
        open_source(Component(kind="merge", parts=(coco, other)))
