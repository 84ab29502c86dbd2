"""Readers of folders, tables, arrays and standard formats, with hostile files among them."""

import gzip
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.data import from_arrays, open_source
from transfer_jax.data.builders.digit_pool import png


def source(kind, **arguments):
    return open_source(Component(kind=kind, **arguments), "stream 's'")


def test_folder_without_splits(image_folder):
    (image_folder / "cat" / "notes.txt").write_text("passed over")
    (image_folder / ".hidden").mkdir()
    splits = source("folder", path=str(image_folder))
    data = splits["train"]
    assert list(splits) == ["train"] and data.class_names == ("cat", "dog", "owl")
    assert np.bincount(data.labels).tolist() == [7, 5, 6]
    assert data.load(7)["image"].shape == (10, 12, 3) and data.load(7)["label"] == 1
    assert data.name_of(7).endswith("dog/000.png")


def test_folder_with_splits(tmp_path, write_images):
    write_images(tmp_path / "train", {"b": 3, "a": 2})
    write_images(tmp_path / "test", {"a": 1, "b": 1})
    splits = source("folder", path=str(tmp_path))
    assert {name: len(data) for name, data in splits.items()} == {"train": 5, "test": 2}
    write_images(tmp_path / "test", {"c": 1})
    with pytest.raises(UserError, match="'train' and 'test'.*different classes: c"):
        source("folder", path=str(tmp_path))


def test_bad_folders_are_explained(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        source("folder", path=str(tmp_path / "no"))
    with pytest.raises(UserError, match="holds no class folder"):
        source("folder", path=str(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        source("folder", path=str(tmp_path))
    with pytest.raises(UserError, match="needs the argument 'path'"):
        source("folder")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables(image_folder, form):
    rows = {"path": ["cat/000.png", "dog/001.png", "owl/002.png"], "label": [10, 9, 10],
            "split": ["train", "train", "t"]}
    file = image_folder / f"list.{form}"
    if form == "csv":
        file.write_text("\n".join(["path,label,split", *(",".join(map(str, row)) for row in zip(*rows.values(),
                                                                                             strict=True))]))
    else:
        pyarrow.parquet.write_table(pa.table(rows), file)
    splits = source("table", path=str(file))
    assert splits["train"].class_names == ("9", "10") == splits["t"].class_names
    assert splits["train"].labels.tolist() == [1, 0] and splits["t"].labels.tolist() == [1]
    assert splits["train"].name_of(1).endswith("dog/001.png")


def test_table_of_masks(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (6, 5)).astype(np.uint8)
    palette = Image.fromarray(mask).convert("P")
    palette.putpalette(list(range(9)) + [0] * 759)
    palette.save(tmp_path / "mask.png")
    Image.new("RGB", (5, 6)).save(tmp_path / "image.png")
    (tmp_path / "list.csv").write_text("path,mask\nimage.png,mask.png\n")
    data = source("table", path=str(tmp_path / "list.csv"), mask_classes=("sky", "road", "car"))["train"]
    assert data.labels is None and data.class_names == ("sky", "road", "car")
    assert (data.load(0)["mask"] == mask).all()


def test_bad_tables_are_explained(tmp_path):
    file = tmp_path / "t.csv"
    with pytest.raises(UserError, match="does not exist"):
        source("table", path=str(file))
    file.write_text("file,label\na.png,1\n")
    with pytest.raises(UserError, match="path_column 'path'"):
        source("table", path=str(file))
    file.write_text("path,lable\na.png,1\n")
    with pytest.raises(UserError, match="label_column 'label'.*did you mean 'lable'"):
        source("table", path=str(file))
    file.write_text("path,label\na.png,1\nb.png,\n")
    with pytest.raises(UserError, match="no 'label' in its data row 2"):
        source("table", path=str(file))
    file.write_text("path,label\n")
    with pytest.raises(UserError, match="holds no row"):
        source("table", path=str(file))
    file.write_text("path,label\nabsent.png,1\n")
    with pytest.raises(UserError, match="absent.png does not exist"):
        source("table", path=str(file))["train"].load(0)


def test_arrays_from_a_file(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, train_image=np.ones((4, 3, 3), np.uint8), train_label=np.arange(4),
             test_image=np.full((2, 3, 3), 0.5), test_label=np.array([0, 5]))
    splits = source("arrays", path=str(file))
    assert splits["train"].class_names == ("0", "1", "2", "3", "4", "5") == splits["test"].class_names
    assert splits["test"].load(1)["image"].tolist() == np.full((3, 3, 1), 128).tolist()
    file.write_bytes(b"no archive")
    with pytest.raises(UserError, match="is no .npz file"):
        source("arrays", path=str(file))


def test_arrays_under_other_names_and_labels_of_bytes(tmp_path):
    file = tmp_path / "a.npz"
    image, label = np.zeros((4, 3, 3), np.uint8), np.array([[0], [2], [1], [1]], np.uint8)
    np.savez(file, x_train=image, y_train=label, more=np.zeros(7))
    splits = source("arrays", path=str(file), arrays={"train_image": "x_train", "train_label": "y_train"})
    assert list(splits) == ["train"] and splits["train"].labels.tolist() == [0, 2, 1, 1]
    assert list(splits["train"].class_names) == ["0", "1", "2"]
    with pytest.raises(UserError, match="unknown array 'x_tran'.*did you mean 'x_train'"):
        source("arrays", path=str(file), arrays={"image": "x_tran"})


@pytest.mark.parametrize("arrays,message", [
    ({"image": np.zeros((3, 4), np.uint8)}, "has the shape (3, 4)"),
    ({"image": np.zeros((3, 4, 4), np.uint8), "label": np.zeros(2, int)}, "the images call for (3,)"),
    ({"image": np.zeros((3, 4, 4), np.uint8), "label": np.zeros(3)}, "whole numbers"),
    ({"image": np.zeros((3, 4, 4), np.uint8), "label": np.array([0, -2, 2])}, "whole numbers from 0"),
    ({"image": np.full((3, 4, 4), 7.0)}, "reach from 0 to 7"),
    ({"image": np.full((3, 4, 4), np.nan)}, "must lie in [0, 1]"),
    ({"image": np.zeros((3, 4, 4), np.int64)}, "int64"),
    ({"images": np.zeros((3, 4, 4), np.uint8)}, "'images' is unknown"),
    ({"label": np.zeros(3, int)}, "no 'image' array"),
    ({}, "there is no array"),
    ({"image": np.zeros((3, 4, 4), np.uint8), "label": np.array([0, 1, 7]), "names": ("a", "b")}, "reach 7, but"),
])
def test_bad_arrays_are_explained(arrays, message):
    with pytest.raises(UserError) as caught:
        from_arrays({key: value for key, value in arrays.items() if key != "names"}, arrays.get("names"))
    assert message in str(caught.value)


def write_idx(folder, images, labels, prefix):
    header = struct.pack(">HBB3I", 0, 8, 3, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.tobytes())


def test_idx(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path, images, np.arange(5, dtype=np.uint8), prefix)
    data = source("idx", folder=str(tmp_path))["test"]
    assert len(data) == 5 and (data.load(2)["image"][..., 0] == images[2]).all() and data.load(2)["label"] == 2
    write_idx(tmp_path, images, np.arange(4, dtype=np.uint8), "train")
    with pytest.raises(UserError, match="do not belong together"):
        source("idx", folder=str(tmp_path))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(UserError, match="no whole idx file"):
        source("idx", folder=str(tmp_path))


def test_usps_text_and_array_forms_agree(tmp_path):
    generator = np.random.default_rng(0)
    milli = generator.integers(-1000, 1001, (3, 16, 16))
    forms = []
    for form in ("npz", "text"):
        folder = tmp_path / form
        folder.mkdir()
        if form == "npz":
            np.savez(folder / "usps.npz", **{f"x_{s}_milli": milli for s in ("train", "test")},
                     **{f"y_{s}": np.array([3, 1, 4]) for s in ("train", "test")})
        else:
            for split in ("train", "test"):
                np.savetxt(folder / f"zip.{split}.gz", np.column_stack([[3, 1, 4], milli.reshape(3, -1) / 1000]))
        data = source("usps", folder=str(folder))["train"]
        forms.append(np.stack([data.load(row)["image"] for row in range(3)]))
        assert data.labels.tolist() == [3, 1, 4]
    assert (forms[0] == forms[1]).all()
    assert np.abs(forms[0][..., 0] - (milli / 1000 + 1) * 127.5).max() <= 0.5


def test_mnistm(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "mnist_m_test.zip", "w") as archive:
        for row in range(4):
            archive.writestr(f"{row:08}.png", png(images[row]))
    (tmp_path / "mnist_m_test_labels.txt").write_text("".join(f"{row:08}.png {9 - row}\n" for row in range(4)))
    (tmp_path / "mnist_m_train").mkdir()
    (tmp_path / "mnist_m_train" / "a.png").write_bytes(png(images[2]))
    (tmp_path / "mnist_m_train_labels.txt").write_text("a.png 7\n")
    splits = source("mnistm", folder=str(tmp_path))
    assert (splits["test"].load(3)["image"] == images[3]).all() and splits["test"].labels.tolist() == [9, 8, 7, 6]
    assert (splits["train"].load(0)["image"] == images[2]).all() and splits["train"].load(0)["label"] == 7


@pytest.mark.parametrize("kind", ["idx", "usps", "mnistm"])
def test_absent_standard_data_say_where_to_point(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_JAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match="set the environment variable TRANSFER_JAX_DATA"):
        source(kind)


def test_merge(tmp_path, write_images):
    for domain in ("x", "y"):
        for split in ("train", "test"):
            write_images(tmp_path / domain / split, {"a": 2, "b": 3})
    parts = tuple({"kind": "folder", "path": str(tmp_path / domain), "domain": domain} for domain in ("x", "y"))
    splits = source("merge", parts=parts)
    assert {name: len(data) for name, data in splits.items()} == {"train": 10, "test": 10}
    assert splits["train"].domains.tolist() == [0] * 5 + [1] * 5 and splits["train"].domain_names == ("x", "y")
    assert "y/train/a" in splits["train"].name_of(5)
    chosen = source("merge", parts=({**parts[0], "split": "train", "classes": ("b",)},
                                    {**parts[1], "split": "test[:4]", "classes": ("b",)}))["train"]
    assert chosen.class_names == ("b",) and chosen.labels.tolist() == [0] * 5
    assert chosen.domains.tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="every part"):
        source("merge", parts=({**parts[0], "split": "train"}, parts[1]))
    with pytest.raises(UserError, match="different classes"):
        source("merge", parts=({**parts[0], "split": "train", "classes": ("b",)}, {**parts[1], "split": "train"}))
    with pytest.raises(UserError, match="did you mean 'path'"):
        source("merge", parts=({"kind": "folder", "pth": "x"},))
