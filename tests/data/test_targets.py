"""Labels that are no class number: what arrays give, what is not known, windows, and how they follow their image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.data import StreamSpec, from_arrays, open_stream
from transfer_jax.data.augment import build_plan
from transfer_jax.data.dataset import Concatenation
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.preprocessing import prepare_image
from transfer_jax.data.targets import prepare_target

KINDS = ("labels", "target", "keypoints", "depth", "normals")
WHOLE = dict(image_size=None, resize=None, fit="stretch", channels=None, interpolation="nearest")
SIZE = (6, 8)


def arrays(count=5, size=SIZE, seed=0):
    generator = np.random.default_rng(seed)
    return {"image": generator.integers(0, 256, (count, *size, 3), dtype=np.uint8),
            "labels": generator.integers(-1, 2, (count, 4)), "target": generator.normal(size=(count, 2)),
            "keypoints": np.concatenate([generator.uniform(size=(count, 3, 2)), np.full((count, 3, 1), 2.0)], -1),
            "depth": generator.uniform(1, 5, (count, *size)), "normals": generator.normal(size=(count, *size, 3))}


def stream(splits, **more):
    given = {"data": {"kind": "arrays"}, "batch_size": 4, "targets": KINDS, **more}
    return open_stream("s", build(StreamSpec, given), (0,), splits)


def batch_of(opened):
    feed = opened.feed()
    return jax.tree.map(np.asarray, opened.evaluation_batch({**feed, "rows": feed["rows"][0]}, 0, opened.size))


def test_a_stream_shows_the_targets_that_it_names_and_no_others():
    given = arrays()
    splits = from_arrays(given, columns={"labels": ("cat", "dog", "owl", "ape")})
    batch = batch_of(stream(splits))
    np.testing.assert_array_equal(batch["labels"], given["labels"])
    for kind in ("target", "keypoints", "depth"):
        np.testing.assert_allclose(batch[kind], given[kind], rtol=1e-6)
    length = np.linalg.norm(given["normals"], axis=-1)[..., None]
    np.testing.assert_allclose(batch["normals"], given["normals"] / length, rtol=1e-5)
    assert {batch[kind].dtype for kind in KINDS} == {np.dtype(np.int32), np.dtype(np.float32)}
    opened = stream(splits, targets=("labels",))
    assert not {"depth", "normals", "keypoints", "target"} & set(opened.example_shapes)
    assert opened.tag_names == ("cat", "dog", "owl", "ape") and opened.keypoint_names == ()
    assert stream(splits).keypoint_names == ("0", "1", "2")
    assert not set(KINDS) & set(stream(splits, labelled=False).example_shapes)
    with pytest.raises(UserError, match="has no 'depth'; it has target"):
        stream(from_arrays({"image": given["image"], "target": given["target"]}), targets=("depth",))


def test_what_is_not_known_has_one_form():
    depth = np.ones(SIZE)
    depth[0, :4] = np.nan, 0, -2, np.inf
    found = prepare_target("depth", depth, SIZE, WHOLE, 0, "picture 7")
    assert found.dtype == np.float32 and not found[0, :4].any() and (found == 0).sum() == 4
    normals = np.full((*SIZE, 3), 2.0)
    normals[0, 0], normals[0, 1] = 0, np.nan
    found = prepare_target("normals", normals, SIZE, WHOLE, 0, "picture 7")
    assert not found[0, :2].any()
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1)[1:], 1, rtol=1e-6)
    points = np.array([[0.5, 0.5, 2], [0.1, 0.2, 0], [1.2, 0.5, 2], [np.nan, 0.5, 1], [0.2, 0.9, 1]])
    found = prepare_target("keypoints", points, SIZE, WHOLE, 5, "picture 7")
    np.testing.assert_allclose(found, [[0.5, 0.5, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0.2, 0.9, 1]], rtol=1e-6)
    assert prepare_target("keypoints", points[:, :2], SIZE, WHOLE, 5, "x")[1, 2] == 2
    found = prepare_target("labels", np.array([1, 0, np.nan, -1, True]), SIZE, WHOLE, 5, "picture 7")
    assert found.tolist() == [1, 0, -1, -1, 1] and found.dtype == np.int32


@pytest.mark.parametrize("kind,value,words", [
    ("labels", [0, 2], "other than 0, 1 and -1"), ("labels", [0], "calls for \\[2\\]"),
    ("target", [1, np.inf], "finite"),
    ("keypoints", [[0, 0, 3], [0, 0, 0]], "visibility"), ("depth", np.ones((8, 6)), "calls for \\[6, 8\\]"),
    ("normals", np.ones((6, 8)), "calls for \\[6, 8, 3\\]")])
def test_what_means_nothing_names_the_picture(kind, value, words):
    with pytest.raises(UnreadableImage, match=f"picture 7 has .*{words}"):
        prepare_target(kind, value, SIZE, WHOLE, 2, "picture 7")


@pytest.mark.parametrize("changes,words", [
    ({"labels": np.zeros((5, 4), "U1")}, "must hold numbers"), ({"depth": np.zeros((5, 8, 6))}, "\\[5, 6, 8\\]"),
    ({"keypoints": np.zeros((5, 3, 4))}, "\\[5, 3, 3\\]"), ({"test_labels": np.zeros((1, 3))}, "3 columns"),
    ({"label": np.zeros(5)}, "'target'"), ({"lables": np.zeros(5)}, "call it image")])
def test_arrays_that_do_not_fit_are_told(changes, words):
    given = arrays() | changes
    if "test_labels" in given:
        given["test_image"] = given["image"][:1]
    with pytest.raises(UserError, match=words):
        from_arrays(given)
    with pytest.raises(UserError, match="label 'depth'.*labels"):
        from_arrays(arrays(), columns={"depth": ("a",)})


def coordinates(size):
    """An image whose channels are the place of the pixel, so that where it came from can be read off."""
    y, x = np.mgrid[:size[0], :size[1]]
    return np.stack([5 * y, 5 * x, np.full(size, 255)], -1).astype(np.uint8)


@pytest.mark.parametrize("description", [
    dict(image_size=(16, 16)), dict(image_size=(16, 16), fit="crop"),
    dict(image_size=(12, 16), fit="crop", resize=20), dict(image_size=(12, 16), fit="cover", resize=(18, 18))])
def test_maps_and_points_show_the_window_of_the_resized_image(description):
    size, settings = (30, 50), {**WHOLE, **description}
    image = coordinates(size)
    shown = prepare_image(image, settings)
    depth = prepare_target("depth", image[..., 0] / 5 + 1.0, size, settings, 0, "x") - 1
    normals = prepare_target("normals", image.astype(float), size, settings, 0, "x")
    np.testing.assert_allclose(depth, shown[..., 0] / 5)
    np.testing.assert_allclose(normals, shown / np.linalg.norm(shown.astype(float), axis=-1)[..., None], rtol=1e-5)
    point = np.array([[24 / 50, 16 / 30, 2]])
    x, y, _ = prepare_target("keypoints", point, size, settings, 1, "x")[0]
    row, column = int(y * shown.shape[0]), int(x * shown.shape[1])
    assert abs(shown[row, column, 0] / 5 - 16) <= 3 and abs(shown[row, column, 1] / 5 - 24) <= 3


MOVED = [("flip", dict(probability=1.0)), ("crop", dict(padding=6)), ("scale", dict(low=0.7, high=1.3)),
         ("random_resized_crop", dict(scale=(0.6, 1.0))), ("rotation", dict(degrees=40.0))]


@pytest.mark.parametrize("kind,arguments", MOVED)
def test_everything_follows_the_image_on_device_and_host(kind, arguments):
    """Depth and normals hold the place that their pixel had; where it went is read off the image."""
    size = (40, 48)
    image, plan = coordinates(size), build_plan((Component(kind=kind, **arguments),), "here", ("a", "b"))
    y, x = np.mgrid[:size[0], :size[1]].astype(np.float32)
    example = {"image": image, "mask": (y * size[1] + x).astype(np.int32), "depth": y + 1,
               "normals": np.stack([x, np.zeros_like(x), np.ones_like(x)], -1),
               "keypoints": np.array([[24.5 / 48, 14.5 / 40, 2], [0, 0, 0]], np.float32)}
    there = {key: jnp.asarray(value)[None] for key, value in example.items()}
    there["image"] = there["image"].astype(jnp.float32) / 255
    run = jax.jit(lambda key: plan.apply(there, key, jnp.arange(1), 2, True))
    plain = jax.jit(lambda key: plan.apply({key: there[key] for key in ("image", "mask")}, key, jnp.arange(1), 2, True))
    for seed in range(3):
        device = {key: np.asarray(value[0]) for key, value in run(jax.random.key(seed)).items()}
        np.testing.assert_array_equal(device["mask"], plain(jax.random.key(seed))["mask"][0])
        host = plan.apply_host(dict(example), np.random.default_rng(seed), size)
        alone = plan.apply_host({"image": image, "mask": example["mask"]}, np.random.default_rng(seed), size)
        np.testing.assert_array_equal(host["mask"], alone["mask"])
        for found, unit in ((device, 255.0), (host, 1.0)):
            inside = found["normals"][..., 2] > 0
            rows, columns = found["image"][..., 0] * unit / 5, found["image"][..., 1] * unit / 5
            whole = inside & (found["image"][..., 2] * unit > 254.5)
            assert whole.sum() > 900
            came = found["mask"] // size[1], found["mask"] % size[1]
            assert np.abs(came[0] - rows)[whole].max() <= 0.71 and np.abs(came[1] - columns)[whole].max() <= 0.71
            factor = (came[0] + 1)[inside] / found["depth"][inside]
            np.testing.assert_allclose(factor, factor[0], rtol=1e-5)
            assert (factor[0] == 1) == (kind not in ("scale", "random_resized_crop"))
            length = np.linalg.norm(found["normals"][..., :2], axis=-1)
            np.testing.assert_allclose(length[inside], came[1][inside], rtol=1e-5, atol=1e-5)
            assert not found["depth"][~inside].any()
            px, py, seen = found["keypoints"][0]
            row, column = int(py * size[0]), int(px * size[1])
            assert seen == 2 and abs(rows[row, column] - 14) <= 1.1 and abs(columns[row, column] - 24) <= 1.1
            assert not found["keypoints"][1].any() and found["keypoints"].dtype == np.float32
        if kind == "flip":
            assert (device["normals"][..., 0] <= 0).all() and (host["normals"][..., 0] <= 0).all()


def test_an_enlarged_image_is_nearer_by_its_factor():
    plan = build_plan((Component(kind="scale", low=1.25, high=1.25),), "here")
    found = plan.apply_host({"image": coordinates(SIZE), "depth": np.full(SIZE, 5, np.float32)},
                            np.random.default_rng(0), SIZE)
    np.testing.assert_allclose(found["depth"], 4)


def test_a_quarter_turn_turns_normals_and_points_with_the_picture():
    """Counter-clockwise: what pointed right points up."""
    plan = build_plan((Component(kind="rotation", degrees=90.0),), "here", ("a",))
    follow = plan.following[0]
    size = (4, 4)
    turned = follow.values({"normals": np.tile(np.float32([1, 0, 0]), (4, 4, 1))}, lambda shape: 1.0, size, np)
    np.testing.assert_allclose(turned["normals"][0, 0], [0, -1, 0], atol=1e-6)
    points = follow.points(np.float32([[0.9, 0.5, 2]]), lambda shape: 1.0, size, np)
    np.testing.assert_allclose(points, [[0.5, 0.1, 2]], atol=1e-6)


def test_a_flip_exchanges_left_and_right():
    names = ("nose", "left eye", "right eye")
    flip = Component(kind="flip", probability=1.0, pairs=(("left eye", "right eye"),))
    plan = build_plan((flip,), "here", names)
    points = np.array([[0.5, 0.5, 2], [0.4, 0.3, 2], [0.7, 0.2, 1]], np.float32)
    expected = [[0.5, 0.5, 2], [0.3, 0.2, 1], [0.6, 0.3, 2]]
    image = coordinates(SIZE)
    host = plan.apply_host({"image": image, "keypoints": points}, np.random.default_rng(0), SIZE)
    device = plan.apply({"image": jnp.float32(image)[None], "keypoints": points[None]}, jax.random.key(0),
                        jnp.arange(1), 2, True)
    np.testing.assert_allclose(host["keypoints"], expected, rtol=1e-6)
    np.testing.assert_allclose(device["keypoints"][0], expected, rtol=1e-6)
    stays = build_plan((Component(kind="flip", probability=0.0, pairs=flip.arguments["pairs"]),), "here", names)
    found = stays.apply_host({"image": image, "keypoints": points}, np.random.default_rng(0), SIZE)
    np.testing.assert_array_equal(found["keypoints"], points)
    with pytest.raises(UserError, match="keypoint 'left eyes'.*did you mean 'left eye'"):
        build_plan((Component(kind="flip", pairs=(("left eyes", "nose"),)),), "here", names)


def test_points_that_leave_the_image_are_not_known():
    plan = build_plan((Component(kind="scale", low=2.0, high=2.0),), "here", ("a", "b"))
    points = np.array([[0.1, 0.5, 2], [0.6, 0.5, 2]], np.float32)
    found = plan.apply_host({"image": coordinates(SIZE), "keypoints": points}, np.random.default_rng(0), SIZE)
    np.testing.assert_allclose(found["keypoints"], [[0, 0, 0], [0.7, 0.5, 2]], rtol=1e-6)


def test_mixing_is_refused():
    with pytest.raises(UserError, match="depth"):
        build_plan((Component(kind="cutmix"),), "here").check({"depth": np.zeros(SIZE)}, "here")


def test_merged_parts_without_a_kind_of_label_say_so():
    one, other = arrays(3), arrays(2, seed=1)
    del other["depth"], other["labels"]
    joined = Concatenation([from_arrays(part)["train"] for part in (one, other)], ("a", "b"), ("depth", "labels"))
    batch = batch_of(stream({"train": joined}))
    for kind, unknown in (("depth", 0), ("labels", -1)):
        np.testing.assert_array_equal(batch[f"known/{kind}"], [1, 1, 1, 0, 0])
        assert (batch[kind][3:] == unknown).all() and (batch[kind][:3] != unknown).any()
    assert "known/target" not in batch and batch["target"].shape == (5, 2)
    assert "known/depth" not in batch_of(stream({"train": joined}, targets=("target",)))
    named = from_arrays(other, columns={"target": ("height", "width")})["train"]
    with pytest.raises(UserError, match="'target' differently"):
        Concatenation([from_arrays(one)["train"], named], ("a", "b"), ("depth", "labels"))
