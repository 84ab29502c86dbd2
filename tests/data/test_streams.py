"""Streams on the device and on the host: one draw, exact evaluation, resumption, processes, bad examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.data import StreamSpec, from_arrays, open_stream
from transfer_jax.data.stream import Stream


def arrays(n=23, classes=3, size=(6, 5), channels=3, masks=False):
    generator = np.random.default_rng(0)
    data = {"image": generator.integers(0, 256, (n, *size, channels), dtype=np.uint8), "label": np.arange(n) % classes}
    if masks:
        data["mask"] = generator.integers(0, 4, (n, *size))
        del data["label"]
    return data


def stream(data=None, name="s", seeds=(0, 1), **spec) -> Stream:
    spec = build(StreamSpec, {"data": {"kind": "arrays"}, "batch_size": 8, **spec}, "streams.s")
    return open_stream(name, spec, seeds, from_arrays(data or arrays()))


def device_batches(opened, steps):
    """[step] -> batch with a leading member axis, by the compiled path."""
    make = jax.jit(jax.vmap(opened.batch, in_axes=(opened.feed_axes(), 0, None)))
    feed, seeds = jax.device_put(opened.feed()), jnp.array(opened.seeds)
    return [jax.device_get(make(feed, seeds, step)) for step in steps]


def host_batches(opened, steps, start=0):
    finish = jax.jit(jax.vmap(opened.batch, in_axes=(opened.feed_axes(), 0, None)))
    iterator = opened.host_batches(start)
    return [jax.device_get(finish(next(iterator), jnp.array(opened.seeds), start + step)) for step in range(steps)]


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_a_device_batch_holds_the_drawn_examples_normalised():
    opened = stream(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch = device_batches(opened, [4])[0]
    rows = opened.indices[1][opened.drawn(4, 1)]
    assert (batch["index"][1] == rows).all() and (batch["weight"] == 1).all()
    expected = (arrays()["image"][rows] / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(batch["image"][1], expected, atol=1e-5)
    assert (batch["label"][1] == rows % 3).all()
    shapes = {key: (value.shape[2:], value.dtype) for key, value in batch.items()}
    assert shapes == opened.example_shapes


def test_device_and_host_give_the_same_batches():
    on_device, on_host = stream(storage="device"), stream(storage="host")
    for one, other in zip(device_batches(on_device, range(5)), host_batches(on_host, 5), strict=True):
        same(one, other)
    assert on_device.example_shapes == on_host.example_shapes


def test_host_batches_resume_from_the_step_alone_and_do_not_depend_on_threads():
    augment = ({"kind": "noise"}, {"kind": "mixup"})
    first = host_batches(stream(storage="host", augment=augment, threads=1), 6)
    later = host_batches(stream(storage="host", augment=augment, threads=5), 3, start=3)
    for one, other in zip(first[3:], later, strict=True):
        same(one, other)
    assert "label_probs" in first[0] and (first[0]["image"] != first[1]["image"]).any()


@pytest.mark.parametrize("storage", ["device", "host"])
def test_augmentation_is_drawn_anew_for_every_step_member_and_slot(storage):
    blank = {"image": np.full((4, 9, 9, 1), 128, np.uint8), "label": np.zeros(4, int)}
    opened = stream(blank, storage=storage, batch_size=4, augment=({"kind": "noise"},))
    batches = device_batches(opened, range(3)) if storage == "device" else host_batches(opened, 3)
    images = np.stack([batch["image"] for batch in batches]).reshape(3 * 2 * 4, -1)
    assert len(np.unique(images, axis=0)) == len(images)


def test_processes_hold_parts_of_the_same_global_batch():
    opened = stream(storage="host", augment=({"kind": "crop"},))
    slots = np.arange(opened.spec.batch_size)
    whole = opened.host_batches(0)
    parts = [opened.host_batches(0, own) for own in np.array_split(slots, 4)]
    for _ in range(4):
        blocks = [next(part) for part in parts]
        same(next(whole), {key: np.concatenate([block[key] for block in blocks], axis=1) for key in blocks[0]})


def test_worker_processes_give_the_same_batches(tmp_path, write_images):
    folder = write_images(tmp_path / "data", {"a": 4, "b": 4})
    (folder / "a" / "001.png").write_text("no image")
    spec = {"data": {"kind": "folder", "path": str(folder)}, "batch_size": 4, "storage": "host",
            "on_bad_example": "skip"}
    here = open_stream("s", build(StreamSpec, spec), (0,))
    there = open_stream("s", build(StreamSpec, {**spec, "workers": 1}), (0,))
    one, other = here.host_batches(2), there.host_batches(2)
    for _ in range(3):
        same(next(one), next(other))
    assert here.ledger.keys() == there.ledger.keys() and len(there.ledger) == 1


@pytest.mark.parametrize("batch_size", [1, 7, 8, 23, 40])
@pytest.mark.parametrize("storage", ["device", "host"])
def test_evaluation_covers_every_example_once(storage, batch_size):
    opened = stream(storage=storage, augment=({"kind": "flip", "probability": 1.0},))
    count = opened.batches_of(batch_size)
    if storage == "device":
        make = jax.jit(jax.vmap(lambda feed, b: opened.evaluation_batch(feed, b, batch_size),
                                in_axes=(opened.feed_axes(), None)))
        feed = opened.feed()
        batches = [make(feed, number) for number in range(count)]
    else:
        batches = [jax.vmap(opened.evaluation_batch)(fed) for fed in opened.evaluation_batches(batch_size)]
    assert len(batches) == count
    joined = {key: np.concatenate([np.asarray(batch[key]) for batch in batches], axis=1) for key in batches[0]}
    assert joined["weight"].shape == (2, count * batch_size) and joined["weight"].sum() == 2 * 23
    real = joined["weight"][0] == 1
    assert joined["index"][0][real].tolist() == list(range(23))
    np.testing.assert_allclose(joined["image"][0][real], arrays()["image"] / 127.5 - 1, atol=1e-5)


def test_evaluation_by_processes_covers_everything_once():
    opened = stream(storage="host")
    parts = [list(opened.evaluation_batches(8, slots)) for slots in np.arange(8).reshape(2, 4)]
    assert [len(part) for part in parts] == [3, 3]
    rows = np.concatenate([batch["index"][0][batch["weight"][0] == 1] for part in parts for batch in part])
    assert sorted(rows.tolist()) == list(range(23))


def test_members_draw_their_own_splits_unless_a_split_seed_is_given():
    own = stream(labels_per_class=4, seeds=(0, 1, 2))
    assert own.indices.shape == (3, 12) and not own.shared_rows
    shared = stream(labels_per_class=4, seeds=(0, 1, 2), split_seed=1)
    assert shared.shared_rows and (shared.indices[0] == own.indices[1]).all()
    rest = stream(per_class="[4:]", seeds=(0, 1, 2), name="other")
    for member in range(3):
        assert sorted([*own.indices[member], *rest.indices[member]]) == list(range(23))
    same(device_batches(own, [3])[0], {key: value for key, value in device_batches(own, [3])[0].items()})
    assert set(device_batches(own, [3])[0]["index"][2]) <= set(own.indices[2].tolist())


def test_a_member_does_not_depend_on_its_company():
    both, alone = stream(seeds=(4, 9), labels_per_class=5), stream(seeds=(9,), labels_per_class=5)
    one, other = device_batches(both, [2])[0], device_batches(alone, [2])[0]
    same({key: value[1:] for key, value in one.items()}, other)


def test_streams_that_differ_only_in_name_and_number_of_labels_compile_once():
    few, many = stream(name="few", labels_per_class=2), stream(name="many", labels_per_class=6)
    shapes = [jax.tree.map(lambda value: (np.shape(value), np.asarray(value).dtype), opened.feed())
              for opened in (few, many)]
    assert shapes[0] == shapes[1] and (few.feed()["count"], many.feed()["count"]) == (6, 18)


def test_streams_of_different_names_do_not_walk_in_step():
    a, b = stream(name="source"), stream(name="target")
    assert (a.drawn(0, 0) != b.drawn(0, 0)).any()


def test_unlabelled_streams_withhold_labels_and_masks():
    assert "label" not in stream(labelled=False).example_shapes
    assert "label_probs" not in device_batches(stream(labelled=False, augment=({"kind": "mixup"},)), [0])[0]
    masked = stream(arrays(masks=True))
    assert masked.example_shapes["mask"] == ((6, 5), np.int32)
    assert "mask" not in stream(arrays(masks=True), labelled=False).example_shapes


def test_domains_of_merged_data_reach_the_batch(tmp_path):
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", **arrays(n=6 + number))
    parts = [{"kind": "arrays", "path": str(tmp_path / f"{number}.npz"), "domain": f"d{number}"} for number in range(2)]
    spec = build(StreamSpec, {"data": {"kind": "merge", "parts": parts}, "batch_size": 13})
    opened = open_stream("s", spec, (0,))
    batch = device_batches(opened, [0])[0]
    assert opened.size == 13 and opened.dataset.domain_names == ("d0", "d1")
    assert sorted(batch["domain"][0].tolist()) == [0] * 6 + [1] * 7


@pytest.mark.parametrize("storage", ["device", "host"])
def test_bad_examples_stop_the_run_or_are_skipped_and_counted(image_folder, storage):
    whole = (image_folder / "dog" / "000.png").read_bytes()
    (image_folder / "cat" / "002.png").write_bytes(whole[:len(whole) // 2])
    (image_folder / "owl" / "001.png").write_text("this is text")
    spec = {"data": {"kind": "folder", "path": str(image_folder)}, "batch_size": 6, "storage": storage}
    with pytest.raises(UserError, match=r"cannot read the image .*(002|001)\.png.*on_bad_example"):
        opened = open_stream("s", build(StreamSpec, spec), (0,))
        for _, _ in zip(range(4), opened.host_batches(0), strict=False):
            pass
    opened = open_stream("s", build(StreamSpec, {**spec, "on_bad_example": "skip"}), (0,))
    if storage == "host":
        seen = [row for _, batch in zip(range(6), opened.host_batches(0), strict=False) for row in batch["index"][0]]
        exact = np.concatenate([batch["weight"][0] for batch in opened.evaluation_batches(6)])
        assert exact.sum() == 16
    else:
        seen = [row for batch in device_batches(opened, range(6)) for row in batch["index"][0]]
        assert opened.size == 16
    assert {opened.dataset.name_of(int(row))[-11:] for row in seen}.isdisjoint({"cat/002.png", "owl/001.png"})
    assert sorted(name[-11:] for name in opened.ledger) == ["cat/002.png", "owl/001.png"]


def test_labels_per_class_stays_full_when_bad_examples_are_skipped(image_folder):
    (image_folder / "dog" / "001.png").write_text("no image")
    spec = {"data": {"kind": "folder", "path": str(image_folder)}, "batch_size": 6, "on_bad_example": "skip",
            "labels_per_class": 4}
    opened = open_stream("s", build(StreamSpec, spec), (0, 1, 2))
    for member in range(3):
        assert np.bincount(opened.dataset.labels[opened.indices[member]]).tolist() == [4, 4, 4]
    with pytest.raises(UserError, match="class 'dog' has 4"):
        open_stream("s", build(StreamSpec, {**spec, "labels_per_class": 5}), (0,))


def test_images_of_unequal_size_need_an_image_size(image_folder):
    Image.new("L", (30, 20)).save(image_folder / "cat" / "999.png")
    spec = {"data": {"kind": "folder", "path": str(image_folder)}, "batch_size": 6}
    with pytest.raises(UserError, match=r"999.png has the shape .*set image_size"):
        open_stream("s", build(StreamSpec, spec), (0,))
    with pytest.raises(UserError, match="set channels"):
        open_stream("s", build(StreamSpec, {**spec, "image_size": (8, 8)}), (0,))
    opened = open_stream("s", build(StreamSpec, {**spec, "image_size": (8, 9), "channels": 1}), (0,))
    assert opened.example_shapes["image"] == ((8, 9, 1), np.float32)


def test_storage_is_chosen_by_size():
    assert stream().storage == "device"
    assert stream(device_bytes=100).storage == "host"
    assert stream(device_bytes=100, labels_per_class=1, storage="device").storage == "device"


@pytest.mark.parametrize("wrong,message", [
    ({"batchsize": 3}, "did you mean 'batch_size'"),
    ({"batch_size": 0}, "greater than or equal to 1"),
    ({"batch_size": "8"}, "batch_size = '8'"),
    ({"labels_per_class": 3, "per_class": "[:3]"}, "give one of them"),
    ({"interpolation": "cubic"}, "valid: nearest"),
    ({"std": 0.0}, "must be positive"),
    ({"mean": (0.5, 0.5)}, "mean has 2 values, but the images have 3 channels"),
    ({"augment": ({"kind": "flp"},)}, "did you mean 'flip'"),
    ({"augment": ({"kind": "flip", "prob": 0.3},)}, "did you mean 'probability'"),
    ({"augment": ({"kind": "flip", "probability": "x"},)}, "probability = 'x' does not fit"),
    ({"augment": ({"kind": "mixup"}, {"kind": "flip"})}, "put mixup and cutmix last"),
    ({"split": "test"}, "the splits are 'train' (23 examples)"),
    ({"per_class": "[:0]"}, "no example is left"),
])
def test_wrong_specs_are_explained(wrong, message):
    with pytest.raises(UserError) as caught:
        stream(**wrong)
    assert message in str(caught.value)
