"""Our own TFDS builders: folds without leaks, masks that fit boxes, no TensorFlow, and races that end well."""

import subprocess
import sys

import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.data import open_source
from transfer_jax.data.builders import digit_pool, digit_scenes


def source(name, **arguments):
    return open_source(Component(kind="tfds", name=name, **arguments))


def test_folds_cover_the_digits_once():
    folds = {name: digit_pool.fold(name) for name in digit_pool.FOLDS}
    assert {name: len(rows) for name, rows in folds.items()} == {"plain_train": 800, "plain_test": 197,
                                                                "photo_train": 600, "photo_test": 200}
    assert sorted(np.concatenate(list(folds.values())).tolist()) == list(range(1797))


@pytest.mark.parametrize("name,counts", [("digits", (800, 197)), ("digits_photo", (600, 200))])
def test_digit_builders(name, counts):
    splits = source(name)
    assert tuple(len(splits[split]) for split in ("train", "test")) == counts
    train = splits["train"]
    assert train.class_names == tuple("0123456789")
    assert (np.bincount(train.labels) == counts[0] // 10).all()
    example = train.load(5)
    assert example["image"].shape == (16, 16, 3) and example["image"].dtype == np.uint8
    assert example["label"] == train.labels[5]
    grey = example["image"].std(axis=2).max() == 0
    assert grey == (name == "digits")


def test_photo_digits_are_a_difference_of_patch_and_digit():
    generator = np.random.default_rng(0)
    background = digit_pool.patch(generator, 16, held_out=False)
    ink, _ = digit_pool.digit(3, 16)
    blended = digit_pool.blend(ink, background)
    assert (blended == np.abs(background.astype(int) - ink[..., None].astype(int))).all()


@pytest.mark.parametrize("config", ["plain", "photo"])
def test_scenes(config):
    train, test = (source("digit_scenes", config=config)[split] for split in ("train", "test"))
    assert (len(train), len(test)) == (400, 100)
    assert train.labels is None and train.class_names == ("background", *"0123456789")
    for row in range(20):
        scene = train.load(row)
        assert scene["image"].shape == (40, 40, 3) and scene["mask"].shape == (40, 40)
        assert 2 <= len(scene["boxes"]) <= 5
        covered = np.zeros((40, 40), bool)
        for box, label in zip(scene["boxes"], scene["box_labels"], strict=True):
            top, left, bottom, right = (np.round(box * 40)).astype(int)
            covered[top:bottom, left:right] = True
            assert (scene["mask"][top:bottom, left:right] == label + 1).any()
        assert (scene["mask"][~covered] == 0).all()
        assert set(scene["mask"][scene["mask"] > 0] - 1) <= set(scene["box_labels"].tolist())
        assert np.flatnonzero(scene["labels"]).tolist() == sorted(set(scene["box_labels"].tolist()))
        for label, (x, y, seen) in enumerate(scene["keypoints"]):
            own = scene["boxes"][scene["box_labels"] == label]
            assert (seen == 2) == (len(own) == 1)
            np.testing.assert_allclose([y, x], (own[0, :2] + own[0, 2:]) / 2 if seen else 0, atol=1e-6)
        assert ((scene["depth"] > 0) == (scene["mask"] > 0)).all() and 1 <= scene["depth"].max() <= 16 / 12 + 1e-6
        known = scene["normals"].any(-1)
        np.testing.assert_allclose(np.linalg.norm(scene["normals"][known], axis=-1), 1, rtol=1e-5)
        assert known[scene["mask"] > 0].all() and not known.all() and (scene["normals"][known][:, 2] > 0).all()
    assert train.columns == {"labels": tuple("0123456789"), "keypoints": tuple("0123456789")}


def test_a_relief_is_steepest_across_its_edges():
    canvas = np.zeros((40, 40), np.uint8)
    canvas[:, 10:] = 255
    normals = digit_scenes._relief(canvas)
    assert not normals[:, :10].any() and (normals[:, 12:] == [0, 0, 1]).all()
    np.testing.assert_allclose(normals[5, 10], np.array([-2, 0, 1]) / np.sqrt(5), rtol=1e-6)


def test_wrong_arguments_are_explained():
    with pytest.raises(UserError, match="config 'plan'.*did you mean 'plain'"):
        source("digit_scenes", config="plan")
    with pytest.raises(UserError, match="cnfig.*did you mean 'config'"):
        source("digits", cnfig="plain")
    with pytest.raises(UserError, match="label_key"):
        source("digits", label_key="class")
    with pytest.raises(UserError, match="needs the argument 'name'"):
        open_source(Component(kind="tfds"))
    with pytest.raises(UserError, match="name = 3 does not fit"):
        source(3)
    with pytest.raises(UserError, match="unknown kind of data 'tfd'"):
        open_source(Component(kind="tfd"))


def test_a_foreign_builder_that_is_not_there_comes_with_the_command(tmp_path):
    with pytest.raises(UserError, match="download_and_prepare"):
        source("cifar10", data_dir=str(tmp_path))


PROGRAM = """
import sys
from transfer_jax.core.spec import Component
from transfer_jax.data import open_source
data = open_source(Component(kind='tfds', name='digit_scenes', config='plain'))['test']
print(len(data), int(data.load(7)['image'].sum()), int(data.load(7)['mask'].sum()), 'tensorflow' in sys.modules)
"""


def test_processes_may_prepare_at_the_same_time_and_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_JAX_CACHE", str(tmp_path / "fresh"))
    runs = [subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [run.communicate(timeout=120)[0].split() for run in runs]
    assert answers[0] == answers[1] and answers[0][0] == "100" and answers[0][3] == "False"
    here = source("digit_scenes", config="plain")["test"]
    assert answers[0][1:3] == [str(int(here.load(7)["image"].sum())), str(int(here.load(7)["mask"].sum()))]
    assert not list((tmp_path / "fresh" / "tfds").glob("preparing-*"))
