"""Merged data: label spaces, the order of mixed parts, images of different shapes, labels that parts lack."""

import numpy as np
import pytest
from test_streams import device_batches, host_batches, same

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.data import StreamSpec, open_source, open_stream, order
from transfer_jax.data.dataset import ArrayDataset
from transfer_jax.data.label_space import unite
from transfer_jax.data.mixing import MIXTURES, by_temperature, places
from transfer_jax.data.sources.merge import merge_source

ANIMALS = [("a", ("cat", "dog")), ("b", ("puppy", "cat", "frog"))]


def numbers(*arguments, **options):
    space = unite(*arguments, **options)
    return space.class_names, [part.tolist() for part in space.numbers]


def test_classes_are_united_by_name():
    assert numbers([("a", ("cat", "dog")), ("b", ("dog", "cat"))]) == (("cat", "dog"), [[0, 1], [1, 0]])
    assert numbers(ANIMALS, "union") == (("cat", "dog", "puppy", "frog"), [[0, 1], [2, 0, 3]])
    assert numbers(ANIMALS, "common") == (("cat",), [[0, -1], [-1, 0, -1]])
    mapped = {"pet": ("dog", "puppy", "cat"), "wild": ("frog",)}
    assert numbers(ANIMALS, mapped) == (("pet", "wild"), [[0, 0], [0, 0, 1]])
    assert numbers(ANIMALS, {"dog": ("dog", "puppy")}, left_out=("cat", "frog")) == (("dog",), [[-1, 0], [0, -1, -1]])
    renamed = [{}, {"puppy": "dog", "frog": None}]
    assert numbers(ANIMALS, "same", renamed) == (("cat", "dog"), [[0, 1], [1, 0, -1]])


@pytest.mark.parametrize(("classes", "renames", "left_out", "message"), [
    ("same", None, (), "different classes, for 'a' has no 'puppy', 'frog' and 'b' has no 'dog'"),
    ({"x": ("dog", "cat"), "y": ("cat", "puppy", "frog")}, None, (), "'cat' is mapped to both 'x' and 'y'"),
    ({"x": ("dog", "cat", "puppy")}, None, (), "part 'b' has 'frog', which no class of the map mentions"),
    ({"x": ("dog", "cat", "puppy", "frog", "cow")}, None, (), "'cow', mapped to 'x', is a class of no part"),
    ("union", [{"dog": "cat"}, {}], (), "part 'a' renames 'dog' to 'cat', which is the name of another"),
    ("union", [{"dgo": "x"}, {}], (), "unknown class 'dgo'.*did you mean 'dog'"),
    ("union", None, ("frgo",), "unknown class 'frgo'.*did you mean 'frog'"),
    ("union", [{}, {"puppy": "Dogs"}], ("frog",), None),  # written down: two classes
    ("common", [{}, {"puppy": None, "cat": None}], (), "no class is common"),
])
def test_conflicts_are_one_sentence(classes, renames, left_out, message):
    if message is None:
        assert numbers(ANIMALS, classes, [{"dog": "dog"}, *renames[1:]], left_out)[0] == ("cat", "dog", "Dogs")
        return
    with pytest.raises(UserError, match=message) as found:
        unite(ANIMALS, classes, renames, left_out)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("other", ["Dog", "dogs", "DOGS", "d-og"])
def test_names_that_differ_in_form_alone_are_conflicts(other):
    with pytest.raises(UserError, match=f"'dog' of 'a' and '{other}' of 'b' differ in form alone"):
        unite([("a", ("dog", "glass")), ("b", (other, "glass"))], "union")
    apart = [("a", ("dog", other)), ("b", ("dog", other))]  # one part has both: they are two classes
    assert unite(apart, "union").class_names == ("dog", other)


def test_all_conflicts_are_told_at_once():
    with pytest.raises(UserError, match="'cat' is mapped to both.*'cow'.*no class of the map mentions"):
        unite(ANIMALS, {"x": ("dog", "cat"), "y": ("cat", "cow")})


@pytest.fixture
def parts(tmp_path):
    """Two parts of unlike images: 6 of 5x4 grey with classes cat, dog; 7 of 8x6 in colour with puppy, cat."""
    generator = np.random.default_rng(0)
    found = []
    for number, (count, shape, names) in enumerate([(6, (5, 4), ("cat", "dog")), (7, (8, 6, 3), ("puppy", "cat"))]):
        np.savez(tmp_path / f"{number}.npz", image=generator.integers(0, 256, (count, *shape), dtype=np.uint8),
                 label=np.arange(count) % 2)
        found.append({"kind": "arrays", "path": str(tmp_path / f"{number}.npz"), "class_names": names,
                      "domain": f"d{number}"})
    return found


def merged(parts, seeds=(0,), name="s", source=None, **spec):
    data = {"kind": "merge", "parts": parts, "classes": {"dog": ("dog", "puppy"), "cat": ("cat",)}, **(source or {})}
    return open_stream(name, build(StreamSpec, {"data": data, "batch_size": 8, "image_size": (6, 6), "channels": 3,
                                                **spec}, "s"), seeds)


def test_parts_of_unlike_images_and_classes_become_one(parts):
    opened = merged(parts)
    assert opened.class_names == ("dog", "cat") and opened.example_shapes["image"][0] == (6, 6, 3)
    assert opened.dataset.labels.tolist() == [1, 0] * 3 + [0, 1, 0, 1, 0, 1, 0]
    batch = device_batches(opened, [0])[0]
    assert (batch["label"][0] == opened.dataset.labels[batch["index"][0]]).all()
    assert (batch["domain"][0] == (batch["index"][0] >= 6)).all()
    with pytest.raises(UserError, match="shape.*set channels|image_size"):
        merged(parts, channels=None)
    fewer = merged(parts, source={"classes": {"cat": ("cat",)}, "left_out": ("dog", "puppy")})
    assert fewer.size == 6 and set(fewer.dataset.labels) == {0} and fewer.dataset.domains.tolist() == [0] * 3 + [1] * 3
    with pytest.raises(UserError, match="kind 'merge'.*'dog' is mapped to both"):
        merged(parts, source={"classes": {"dog": ("dog", "puppy"), "cat": ("cat", "dog")}})


def test_a_rename_may_swap_classes(parts):
    data = {"kind": "merge", "classes": "same",
            "parts": ({**parts[0]}, {**parts[1], "classes": {"puppy": "cat", "cat": "dog"}})}
    found = open_source(build(Component, data))["train"]
    assert found.class_names == ("cat", "dog") and found.labels.tolist() == [0, 1] * 3 + [0, 1, 0, 1, 0, 1, 0]
    assert [found.load(row)["label"] for row in range(13)] == found.labels.tolist()


def test_masks_take_the_united_numbers_too(tmp_path):
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", image=np.zeros((1, 2, 2), np.uint8), mask=[[[0, 1], [2, 1]]])
    data = {"kind": "merge", "classes": {"road": ("road", "street"), "car": ("car",)}, "left_out": ("sky",), "parts": (
        {"kind": "arrays", "path": str(tmp_path / "0.npz"), "class_names": ("car", "road", "sky")},
        {"kind": "arrays", "path": str(tmp_path / "1.npz"), "class_names": ("sky", "street", "car")})}
    found = open_source(build(Component, data))["train"]
    assert found.load(0)["mask"].tolist() == [[1, 0], [255, 0]] and found.load(1)["mask"].tolist() == [[255, 0], [1, 0]]


def test_shares_of_an_epoch():
    sizes, names = np.array([800.0, 50.0, 150.0]), ("x", "y", "z")
    for kind, options, expected in [("size", {}, [0.8, 0.05, 0.15]), ("equal", {}, [1 / 3] * 3),
                                    ("weights", {"weights": {"z": 1, "x": 2, "y": 1}}, [0.5, 0.25, 0.25]),
                                    ("temperature", {"temperature": 1.0}, [0.8, 0.05, 0.15])]:
        np.testing.assert_allclose(MIXTURES[kind](sizes, names, **options), expected, rtol=1e-12)
    warm = by_temperature(sizes, names, temperature=3.0)
    np.testing.assert_allclose(warm, np.cbrt(sizes) / np.cbrt(sizes).sum(), rtol=1e-12)
    np.testing.assert_allclose(by_temperature(sizes, names, temperature=1e9), 1 / 3, rtol=1e-6)
    assert places(np.array([0.5, 0.25, 0.25]), 10).tolist() == [5, 3, 2]  # of equal remainders the first
    for total in (1, 7, 1000, 12345):
        found = places(warm, total)
        assert found.sum() == total and (np.abs(found - warm * total) < 1).all()


def test_a_mixed_epoch_has_exact_shares_and_each_part_its_own_epochs():
    sizes, shares, batch = np.array([7, 50, 13]), np.array([30, 20, 20]), 16
    steps = 70 * 13
    drawn = np.concatenate([order.draw_mixed(step, batch, sizes, shares, np.uint32(5)) for step in range(steps)])
    part = np.searchsorted(np.cumsum(sizes), drawn, side="right")
    epochs = part.reshape(-1, 70)
    assert (np.stack([(epochs == p).sum(1) for p in range(3)]) == shares[:, None]).all()
    assert not (epochs[0] == epochs[1]).all() and np.ptp(np.flatnonzero(epochs[0] == 1)) > 50  # spread, not in blocks
    for p in range(3):  # of all places of a part, taken in whole numbers of its epochs, every example has as many
        own = drawn[part == p] - (np.cumsum(sizes) - sizes)[p]
        counts = np.bincount(own, minlength=sizes[p])
        assert len(counts) == sizes[p] and np.ptp(counts) <= 1, p
    assert len(set(drawn[:70][part[:70] == 1].tolist())) == 20  # the large part: 20 different ones
    proportional = [order.draw_mixed(step, 7, sizes, sizes, np.uint32(5)) for step in range(10)]
    assert sorted(np.concatenate(proportional).tolist()) == list(range(70))  # by size: a concatenation's epoch


def test_locate_by_an_array_is_right_beyond_32_bits():
    steps, batches = np.array([2**31 - 1, 12345, 7]), np.array([2**29, 2**31 - 9, 3])
    sizes, slots = np.array([123456789, 5, 1]), np.array([4, 2, 0])
    epoch, offset = order.locate(steps, batches, sizes, slots)
    exact = [divmod(int(s) * int(b) + int(o), int(n)) for s, b, n, o in zip(steps, batches, sizes, slots, strict=True)]
    assert [(int(e), int(o)) for e, o in zip(epoch, offset, strict=True)] == [(e % 2**32, o) for e, o in exact]


def test_a_mixture_is_the_same_from_device_and_host_and_follows_every_seed(parts):
    mix = {"kind": "weights", "weights": {"d0": 3, "d1": 1}}
    options = {"mix": mix, "per_class": "[:4]", "seeds": (0, 1)}
    device, host = merged(parts, **options), merged(parts, **options, storage="host")
    assert device.size == 8 and device.mixture[1].tolist() == [[6, 2]] * 2
    assert device.mixture[0].tolist() != [[4, 4]] * 2 and (device.mixture[0].sum(1) == 8).all()
    for there, here in zip(device_batches(device, [3, 4]), host_batches(host, 2, start=3), strict=True):
        same(there, here)
    domains = np.concatenate([batch["domain"] for batch in device_batches(device, range(5))], axis=1)
    assert (domains == 1).sum(1).tolist() == [10, 10]  # batches of 8 are epochs of 8


@pytest.mark.parametrize(("mix", "message"), [
    ({"kind": "weights", "weights": {"d0": 1}}, "weights say nothing of 'd1'"),
    ({"kind": "weights", "weights": {"d0": 1, "d2": 1}}, "unknown source 'd2'"),
    ({"kind": "weights", "weights": {"d0": 1, "d1": 0}}, "give numbers > 0"),
    ({"kind": "weights", "weights": {"d0": 1, "d1": 1e-6}}, "the share of the part 'd1' is less than one example"),
    ({"kind": "temperature", "temperature": 0.5}, "temperature = 0.5 does not fit"),
    ({"kind": "temprature", "temperature": 2.0}, "unknown kind of mixture 'temprature'.*'temperature'"),
])
def test_faulty_mixtures(parts, mix, message):
    with pytest.raises(UserError, match=message):
        merged(parts, mix=mix)


def test_only_parts_can_be_mixed(parts):
    spec = build(StreamSpec, {"data": {key: value for key, value in parts[0].items() if key != "domain"},
                              "batch_size": 2, "mix": {"kind": "equal"}})
    with pytest.raises(UserError, match="'mix' needs a data set of kind 'merge'"):
        open_stream("s", spec, (0,))


@pytest.mark.parametrize("storage", ["device", "host"])
def test_labels_that_a_part_lacks_are_marked(parts, storage):
    bare = {**parts[1], "arrays": {"image": "image"}}
    del bare["class_names"]
    opened = merged([parts[0], bare], source={"classes": "same"}, storage=storage)
    assert opened.class_names == ("cat", "dog") and opened.dataset.labels.tolist() == [0, 1] * 3 + [-1] * 7
    batch = (device_batches(opened, [1]) if storage == "device" else host_batches(opened, 1, start=1))[0]
    assert (batch["known/label"][0] == (batch["domain"][0] == 0)).all()
    assert (batch["label"][0][batch["domain"][0] == 1] == 0).all()
    assert "known/label" not in merged([parts[0], bare], source={"classes": "same"}, labelled=False).example_shapes
    with pytest.raises(UserError, match="have no label, and mixup would mix them"):
        merged([parts[0], bare], source={"classes": "same"}, augment=({"kind": "mixup"},), storage=storage)


def test_labels_and_masks_are_not_merged(parts, tmp_path):
    np.savez(tmp_path / "m.npz", image=np.zeros((2, 4, 4), np.uint8), mask=np.zeros((2, 4, 4), int))
    with pytest.raises(UserError, match="a stream and a task of its own"):
        merged([parts[0], {"kind": "arrays", "path": str(tmp_path / "m.npz")}], source={"classes": "union"})


class Both(ArrayDataset):
    """One image with a label of 0 and a box of every class."""

    def __init__(self, classes, boxes):
        super().__init__(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, len(classes) - 1]), classes)
        self.box_class_names = boxes

    def load(self, row):
        edges = np.tile(np.float32([0, 0, 1, 1]), (len(self.box_class_names), 1))
        return {**super().load(row), "boxes": edges, "box_labels": np.arange(len(edges))}


@pytest.mark.parametrize(("own", "options", "labels", "boxes", "first"), [
    (({}, {}), dict(classes="union"), ("day", "night"), ("cat", "dog", "ape"), ([0, 1], [1, 2])),
    (({"cat": "feline"}, {"dog": "feline", "ape": None}), dict(classes="union"), ("day", "night"), ("feline", "dog"),
     ([0, 1], [0])),
    (({}, {}), dict(classes={"pet": ("cat", "dog")}, left_out=("ape",)), ("day", "night"), ("pet",), ([0, 0], [0])),
    (({}, {}), dict(classes={"time": ("day", "night"), "pet": ("cat", "dog"), "other": ("ape",)}), ("time",),
     ("pet", "other"), ([0, 0], [0, 1]))])
def test_classes_of_labels_and_of_boxes_are_united_each_by_themselves(own, options, labels, boxes, first, monkeypatch):
    opened = {"one": Both(("day", "night"), ("cat", "dog")), "two": Both(("night", "day"), ("dog", "ape"))}
    monkeypatch.setattr("transfer_jax.data.open_source", lambda component, where: {"train": opened[component.kind]})
    parts = tuple(dict(kind=name, classes=renames, domain=name) for name, renames in zip(opened, own, strict=True))
    found = merge_source(parts=parts, **options)["train"]
    assert (found.class_names, found.box_class_names) == (labels, boxes)
    assert [found.load(row)["box_labels"].tolist() for row in (0, 2)] == list(first)
    names = [found.class_names[label] for label in found.labels]
    assert names == (["time"] * 4 if labels == ("time",) else ["day", "night", "night", "day"])


def test_conflicts_of_boxes_are_told_beside_labels(monkeypatch):
    opened = {"one": Both(("day",), ("cat", "dog")), "two": Both(("day",), ("Cat", "dog"))}
    monkeypatch.setattr("transfer_jax.data.open_source", lambda component, where: {"train": opened[component.kind]})
    parts = tuple(dict(kind=name, domain=name) for name in opened)
    for options, said in ((dict(classes="union"), "classes of boxes.*'cat' of 'one' and 'Cat' of 'two' differ in form"),
                          (dict(classes={"pet": ("cat", "dog")}), "'Cat', which no class of the map mentions"),
                          (dict(classes={"pet": ("cat", "dog", "Cat", "owl")}), "'owl'.*is a class of no part"),
                          (dict(classes="union", left_out=("owl",)), "unknown class 'owl'")):
        with pytest.raises(UserError, match=said):
            merge_source(parts=parts, **options)
