"""Files of other labels: tables of several classes an image and of numbers, folders of maps beside images."""

import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.data import StreamSpec, open_source, open_stream

SIZE = (6, 8)
RNG = np.random.default_rng(3)


def batch_of(data, **spec):
    """The evaluation batch of all examples."""
    stream = open_stream("made", StreamSpec(data=Component(**data), batch_size=2, channels=3, **spec), (0,))
    feed = stream.feed()
    return stream, stream.evaluation_batch({**feed, "rows": feed["rows"][0]}, 0, stream.size)


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b", "c"):
        Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def table(folder, text):
    (folder / "table.csv").write_text(text)
    return dict(kind="table", path=str(folder / "table.csv"))


def test_names_in_a_cell_and_a_column_a_class_are_the_same_labels(images):
    named = table(images, "path,tags,age\na.png,dog; cat,3\nb.png,,4.5\nc.png,cat,-1\n")
    stream, batch = batch_of({**named, "labels_column": "tags", "target_columns": ("age",)},
                             targets=("labels", "target"))
    assert stream.tag_names == ("cat", "dog")
    assert batch["labels"].tolist() == [[1, 1], [0, 0], [1, 0]] and batch["target"].tolist() == [[3], [4.5], [-1]]
    _, ordered = batch_of({**named, "labels_column": "tags", "label_names": ("dog", "owl", "cat")}, targets=("labels",))
    assert ordered["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    columns = table(images, "path,label,cat,dog\na.png,x,1,true\nb.png,y,0,false\nc.png,x,,false\n")
    stream, batch = batch_of({**columns, "label_columns": ("cat", "dog")}, targets=("labels",))
    assert stream.tag_names == ("cat", "dog") and stream.class_names == ("x", "y")
    assert batch["labels"].tolist() == [[1, 1], [0, 0], [-1, 0]] and batch["label"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(("more", "said"), [
    (dict(labels_column="tags", label_names=("cat",)), "unknown class 'dog' in column 'tags', data row 1"),
    (dict(labels_column="tagz"), "did you mean 'tags'"), (dict(), "unknown label_column 'label'"),
    (dict(label_columns=("age",)), "'3' in column 'age', data row 1; a column of a class holds"),
    (dict(target_columns=("age",)), "'3' in column 'age', data row 1; a target is a number"),
    (dict(labels_column="tags", label_columns=("tags",)), "give labels_column, one column of names, or"),
    (dict(labels_column="tags", separator=""), "separates no names")])
def test_a_faulty_table_is_told(images, more, said):
    faulty = table(images, "path,tags,age\na.png,dog; cat,3\nb.png,dog,old\n")
    with pytest.raises(UserError, match=said):
        open_source(Component(**faulty, **more))


@pytest.fixture
def scenes(tmp_path):
    """Two images, the first with a 16-bit depth, the second with one of floats; normals and masks."""
    root = tmp_path / "scenes" / "train"
    for name in ("images", "depth", "normals", "masks"):
        (root / name).mkdir(parents=True)
    for name in ("one", "two"):
        Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8)).save(root / "images" / f"{name}.jpg")
        Image.fromarray(RNG.integers(0, 2, SIZE, np.uint8)).save(root / "masks" / f"{name}.png")
    steps = RNG.integers(300, 60000, SIZE).astype(np.uint16)
    steps[0, 0] = 0
    Image.fromarray(steps).save(root / "depth" / "one.png")
    np.save(root / "depth" / "two.npy", np.full(SIZE, 2.5, np.float32))
    coded = np.full((*SIZE, 3), (128, 128, 255), np.uint8)
    coded[0] = 0
    Image.fromarray(coded).save(root / "normals" / "one.png")
    np.save(root / "normals" / "two.npy", np.tile(np.float32([0, 3, 4]), (*SIZE, 1)))
    return root, steps


ALL = dict(masks="masks", depth="depth", normals="normals", mask_classes=("dark", "bright"))


def test_maps_stand_beside_their_images(scenes):
    root, steps = scenes
    stream, batch = batch_of(dict(kind="pairs", path=str(root.parent), **ALL), targets=("depth", "normals"))
    assert stream.class_names == ("dark", "bright") and batch["mask"].shape == (2, *SIZE)
    np.testing.assert_allclose(batch["depth"][0], steps * 0.001, rtol=1e-6)
    assert (batch["depth"][1] == 2.5).all() and batch["depth"][0, 0, 0] == 0
    assert (batch["normals"][0, 0] == 0).all()
    np.testing.assert_allclose(batch["normals"][0, 1:], np.tile([0.004, 0.004, 1], (5, SIZE[1], 1)), atol=1e-4)
    np.testing.assert_allclose(batch["normals"][1], np.tile([0, 0.6, 0.8], (*SIZE, 1)), rtol=1e-6)
    alone = open_source(Component(kind="pairs", path=str(root), depth="depth", depth_unit=0.5))
    assert list(alone) == ["train"] and alone["train"].load(0)["depth"][1, 1] == steps[1, 1] * 0.5
    _, small = batch_of(dict(kind="pairs", path=str(root), depth="depth"), targets=("depth",), image_size=(3, 4))
    assert small["depth"].shape == (2, 3, 4)


def test_maps_that_do_not_fit_are_told(scenes):
    root, _ = scenes
    data = dict(kind="pairs", path=str(root), **ALL)
    for change, said in ((dict(depth="depths"), "depths' does not exist"),
                         (dict(mask_classes=()), "need `mask_classes`"),
                         (dict(masks=None, depth=None, normals=None), "need a folder of maps"),
                         (dict(depth_unit=0.0), "must be positive")):
        with pytest.raises(UserError, match=said):
            open_source(Component(**{**data, **change}))
    np.save(root / "depth" / "three.npy", np.ones(SIZE))
    with pytest.raises(UserError, match=r"1 files of .*depth have no partner in images \(three\)"):
        open_source(Component(**data))
    (root / "depth" / "three.npy").unlink()
    np.save(root / "depth" / "two.npy", np.ones((5, 5), np.float32))
    with pytest.raises(UserError, match=r"two.jpg has 'depth' of the shape \[5, 5\], but the image calls for"):
        batch_of(data, targets=("depth",))
    np.save(root / "normals" / "two.npy", np.ones(SIZE))
    part = open_source(Component(**data))["train"]
    with pytest.raises(UserError, match="store x, y and z"):
        part.load(1)
    for mask, said in ((np.full(SIZE, 7, np.uint8), "has the class 7, but the classes are 0 ... 1 and 255"),
                       (np.zeros((5, 5), np.uint8), r"is \(5, 5\), its image \(6, 8\)")):
        Image.fromarray(mask).save(root / "masks" / "one.png")
        with pytest.raises(UserError, match=said):
            part.load(0)
    (root / "depth" / "two.npy").write_bytes(b"no numbers")
    with pytest.raises(UserError, match="no readable .npy file"):
        part.load(1)
    (root / "depth" / "two.npy").unlink()
    with pytest.raises(UserError, match=r"images have no partner in depth \(two\)"):
        open_source(Component(**data))
