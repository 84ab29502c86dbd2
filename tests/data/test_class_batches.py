"""Batches of P classes with K examples: what they hold, that nothing is left out, and that host and device agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.data import StreamSpec, from_arrays, open_stream


def stream(labels, **spec):
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    spec = build(StreamSpec, {"data": {"kind": "arrays"}, "mean": 0.0, "std": 1.0, **spec}, "streams.s")
    return open_stream("s", spec, (0, 1), from_arrays({"image": images, "label": labels}))


LABELS = np.repeat(np.arange(7), [6, 6, 6, 6, 6, 2, 9])  # 41 examples of 7 classes


@pytest.fixture(scope="module")
def batches():
    opened = stream(LABELS, batch_size=12, classes_per_batch=3)
    make = jax.jit(jax.vmap(opened.batch, in_axes=(opened.feed_axes(), 0, None)))
    feed, seeds = jax.device_put(opened.feed()), jnp.array(opened.seeds)
    return [jax.device_get(make(feed, seeds, step)) for step in range(60)]


def test_every_batch_has_three_classes_of_four_examples(batches):
    for batch in batches:
        for member in range(2):
            kinds, counts = np.unique(batch["label"][member], return_counts=True)
            assert len(kinds) == 3 and (counts == 4).all()
            for kind in set(kinds) - {5}:  # only the class of two examples has to repeat one
                assert len(set(batch["index"][member][batch["label"][member] == kind])) == 4


def test_all_examples_come_and_orders_differ(batches):
    for member in range(2):
        seen = np.concatenate([batch["index"][member] for batch in batches])
        assert set(seen) == set(range(len(LABELS)))
        shown = np.bincount(LABELS[seen], minlength=7)
        assert shown.min() > 0.5 * shown.mean()
    assert (batches[0]["index"][0] != batches[0]["index"][1]).any()
    assert (batches[0]["index"] != batches[1]["index"]).any()


def test_an_epoch_shows_no_class_twice(batches):
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len(np.unique(np.concatenate([first["label"][0], second["label"][0]]))) == 6


def test_host_and_device_draw_alike_from_any_step(batches):
    host = stream(LABELS, batch_size=12, classes_per_batch=3, storage="host")
    resumed = host.host_batches(17)
    for step in (17, 18):
        found = next(resumed)
        np.testing.assert_array_equal(found["index"], batches[step]["index"])
        np.testing.assert_array_equal(found["label"], batches[step]["label"])


@pytest.mark.parametrize("spec,words", [
    (dict(batch_size=10, classes_per_batch=3), "no multiple"),
    (dict(batch_size=16, classes_per_batch=8), "has 7 classes"),
    (dict(batch_size=6, classes_per_batch=3, follows="t"), "leave classes_per_batch out")])
def test_impossible_batches_are_one_sentence(spec, words):
    with pytest.raises(UserError, match=words):
        stream(LABELS, **spec)
