"""CamVid: both published forms on made files, void, the real archive where it lies, errors that name the file."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.data import StreamSpec, open_source, open_stream
from transfer_jax.data.sources.camvid import ELEVEN

SIZE = (6, 8)
COLOURS = {"Sky": (128, 128, 128), "LaneMkgsDriv": (128, 0, 192), "Road": (128, 64, 128), "Void": (0, 0, 0)}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def written(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def numbers(seed):
    return np.random.default_rng(seed).integers(0, 12, SIZE)


def segnet():
    files = {}
    for split, names in (("train", ("b", "a")), ("val", ("c",)), ("test", ("d",))):
        for name in names:
            files[f"CamVid/{split}/{name}.png"] = png(np.full((*SIZE, 3), ord(name)))
            files[f"CamVid/{split}annot/{name}.png"] = png(numbers(ord(name)))
    return files


def original(**more):
    names = list(COLOURS)
    drawn = np.random.default_rng(0).integers(0, len(names), (2, *SIZE))
    files = {"label_colors.txt": "".join(f"{r} {g} {b}\t\t{name}\n" for name, (r, g, b) in COLOURS.items()).encode(),
             "train.txt": b"one.png\n", "test.txt": b"two\n"}
    for name, mask in zip(("one", "two"), drawn, strict=True):
        files[f"701_StillsRaw_full/{name}.png"] = png(np.full((*SIZE, 3), 9))
        files[f"LabeledApproved_full/{name}_L.png"] = png(np.array([COLOURS[n] for n in names])[mask])
    return {**files, **more}, drawn


def opened(folder, **arguments):
    return open_source(Component(kind="camvid", folder=str(folder), **arguments))


@pytest.mark.parametrize("packed", [False, True])
def test_the_form_of_segnet(tmp_path, packed):
    files = segnet()
    if packed:
        with zipfile.ZipFile(tmp_path / "camvid.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    splits = opened(tmp_path if packed else written(tmp_path, files))
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "val": 1, "test": 1}
    train = splits["train"]
    assert train.class_names == tuple(ELEVEN) and train.labels is None
    for row, name in enumerate("ab"):
        example = train.load(row)
        assert (example["image"] == ord(name)).all() and name in train.name_of(row)
        np.testing.assert_array_equal(example["mask"], np.where(numbers(ord(name)) == 11, 255, numbers(ord(name))))


@pytest.mark.parametrize("classes", [11, 32])
def test_the_original_form(tmp_path, classes):
    files, drawn = original()
    splits = opened(written(tmp_path, files), classes=classes)
    assert list(splits) == ["train", "test"]
    new = np.array([0, 1, 2, 255]) if classes == 32 else np.array([0, 3, 3, 255])  # markings are road among eleven
    splits = pickle.loads(pickle.dumps(splits))  # as worker processes get them
    for split, mask in zip(splits.values(), drawn, strict=True):
        np.testing.assert_array_equal(split.load(0)["mask"], new[mask])
        assert split.class_names == (("Sky", "LaneMkgsDriv", "Road") if classes == 32 else tuple(ELEVEN))


def test_masks_are_resized_by_the_nearest_pixel_and_images_smoothly(tmp_path):
    spec = build(StreamSpec, dict(data=dict(kind="camvid", folder=str(written(tmp_path, segnet()))), split="train",
                                  batch_size=2, image_size=(3, 4)))
    stream = open_stream("train", spec, (0,))
    mask = stream.tables["mask"]
    assert mask.shape == (2, 3, 4) and stream.tables["image"].shape == (2, 3, 4, 3)
    full = np.where(numbers(ord("a")) == 11, 255, numbers(ord("a")))
    windows = full.reshape(3, 2, 4, 2).transpose(0, 2, 1, 3).reshape(3, 4, 4)
    assert (mask[0][..., None] == windows).any(-1).all()


def change(files, **more):
    return {name: content for name, content in {**files, **more}.items() if content is not None}


@pytest.mark.parametrize(("files", "arguments", "words"), [
    ({"other/x.png": png(np.zeros(SIZE))}, {}, "holds neither folders train, val, test"),
    (change(segnet(), **{"CamVid/trainannot/b.png": None}), {}, "train/b.png has no mask trainannot/b.png"),
    (segnet(), {"classes": 32}, "has no label_colors.txt"),
    (segnet(), {"classes": 12}, "11 or 32 classes, not 12"),
    ({"camvid.zip": b"PK no"}, {}, "no whole archive"),
    (change(original()[0], **{"LabeledApproved_full/two_L.png": None}), {}, "no two_L.png"),
    (change(original()[0], **{"train.txt": None, "test.txt": None}), {}, "comes without lists"),
    (change(original()[0], **{"label_colors.txt": b"1 2 Sky\n"}), {}, "line 1: '1 2 Sky' is no colour"),
])
def test_missing_files_are_named(tmp_path, files, arguments, words):
    with pytest.raises(UserError, match=words):
        opened(written(tmp_path, files), **arguments)


@pytest.mark.parametrize(("files", "words"), [
    (change(segnet(), **{"CamVid/trainannot/a.png": png(np.full(SIZE, 40))}), "has the number 40"),
    (change(segnet(), **{"CamVid/trainannot/a.png": png(np.zeros((2, 2)))}), "its mask \\(2, 2\\)"),
    (change(original()[0], **{"LabeledApproved_full/one_L.png": png(np.full((*SIZE, 3), 7))}), "the colour 7, 7, 7"),
])
def test_a_bad_mask_names_its_scene(tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        opened(written(tmp_path, files))["train"].load(0)


def test_the_real_archive():
    place = Path(os.environ.get("TRANSFER_JAX_DATA", "../shared/data")) / "datasets" / "camvid_half"
    if not place.is_dir():
        pytest.skip(f"the folder of standard data sets is absent ({place})")
    splits = open_source(Component(kind="camvid"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 367, "val": 101, "test": 233}
    example = splits["test"].load(7)
    assert example["image"].shape == (180, 240, 3) and set(np.unique(example["mask"])) <= {*range(11), 255}
