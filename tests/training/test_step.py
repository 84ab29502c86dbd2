"""The compiled step against a step written by hand, and the invariances that it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_experiment import same_leaves, single, start, trained

from transfer_jax.core.paths import unflatten
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.training import step
from transfer_jax.training.chunk import compile_chunk

STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def compilation(compilation_for_bits):
    """Bits are compared."""


def by_hand(spec, optimizer, steps=STEPS, clip=None):
    """Losses and parameters of plain jitted training on the very batches of the stream."""
    ready, state, _, feeds, seeds, _ = start(spec)
    stream, model = ready.program.streams["train"], ready.program.model
    params = unflatten({path: leaf[0] for path, leaf in state.trainable.items()})
    opt_state = optimizer.init(params)
    axes = stream.feed_axes()
    feed = jax.tree.map(lambda axis, part: part if axis is None else jax.tree.map(lambda x: x[0], part), axes,
                        feeds["train"], is_leaf=lambda axis: axis is None)

    def loss_of(params, batch):
        taps, _ = model.taps({"params": params}, {"backbone": batch["image"]}, train=True)
        logits, _ = model.head({"params": params}, "digits", taps, (8, 8), train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    @jax.jit
    def step(params, opt_state, number):
        batch = stream.batch(feed, seeds["data"][0], number)
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return loss, optax.apply_updates(params, updates), opt_state

    losses = []
    for number in range(steps):
        loss, params, opt_state = step(params, opt_state, jnp.int32(number))
        losses.append(float(loss))
    return np.array(losses), params


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_twenty_steps_equal_a_step_written_by_hand(digits_file, name):
    spec = single(digits_file, {"lr": 0.01, "optimizer": {"kind": name}})
    reference = {"adam": optax.adam(0.01), "sgd": optax.sgd(0.01, momentum=0.9)}[name]
    losses, params = by_hand(spec, reference)
    found = trained(spec)
    np.testing.assert_allclose(found.metrics["digits"][:, 0], losses, atol=1e-6)
    for path, leaf in found.after.trainable.items():
        node = params
        for part in path.split("/"):
            node = node[part]
        np.testing.assert_allclose(leaf[0], node, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("storage", ["device", "host"])
def test_one_trace_serves_the_names_of_metrics_and_the_step(digits_file, monkeypatch, storage):
    traced, moved = [], step._moved
    monkeypatch.setattr(step, "_moved", lambda *arguments: traced.append(0) or moved(*arguments))
    trained(single(digits_file, {"steps": 2}, {"streams.train.storage": storage}))
    assert len(traced) == 1


def test_clipping_is_that_of_optax_over_the_leaves_that_move(digits_file):
    spec = single(digits_file, {"lr": 0.5, "optimizer": {"kind": "sgd", "momentum": 0.0}, "clip_norm": 0.1})
    losses, _ = by_hand(spec, optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5)))
    found = trained(spec)
    assert (found.metrics["gradient_norm"] > 0.1).any()
    np.testing.assert_allclose(found.metrics["digits"][:, 0], losses, atol=1e-6)


def test_the_clipped_norm_is_that_of_trainable_leaves_only(digits_file):
    frozen = {"partition": (("heads/.*", "head"), (".*", "frozen")), "groups": {"head": {}}, "clip_norm": 1e-3,
              "steps": 1, "lr": 1.0, "optimizer": {"kind": "sgd", "momentum": 0.0}}
    found = trained(single(digits_file, frozen))
    moved = [found.after.trainable[path] - found.before.trainable[path] for path in found.before.trainable]
    assert float(optax.tree.norm(moved)) == pytest.approx(1e-3, rel=1e-4)


def test_accumulation_equals_the_big_batch(digits_file):
    whole = trained(single(digits_file, {}))
    parts = trained(single(digits_file, {"accumulate": 4}))
    np.testing.assert_allclose(parts.metrics["loss"], whole.metrics["loss"], atol=1e-5)


def test_steps_per_dispatch_changes_no_bit(digits_file, own_compilation):
    spec = single(digits_file, {"optimizer": {"kind": "sgd"}}, {"log_every": 5})
    runs = [trained(spec, steps_per_dispatch=count) for count in (0, 1, 3, 64)]
    assert all(same_leaves(runs[0].after, other.after) for other in runs[1:])
    assert all(np.array_equal(runs[0].metrics["loss"], other.metrics["loss"]) for other in runs[1:])


@pytest.mark.parametrize("how", ["vmap", "map"])
def test_seeds_trained_together_equal_each_alone(digits_file, how):
    seeds = (3, 7, 11)
    stage = {"optimizer": {"kind": "sgd"}, "lr": 0.05}
    changes = {"seeds": seeds, "streams.train.labels_per_class": 5, "members": how}
    together = trained(single(digits_file, stage, changes))
    for number, seed in enumerate(seeds):
        alone = trained(single(digits_file, stage, {"seeds": (seed,), "streams.train.labels_per_class": 5}))
        np.testing.assert_allclose(together.metrics["loss"][:, number], alone.metrics["loss"][:, 0], atol=2e-5)
    assert np.ptp(together.metrics["loss"][0]) > 1e-3


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_follows_its_formula(digits_file, warmup):
    decay = 0.5
    spec = single(digits_file, {"ema": {"decay": decay, "warmup": warmup}, "steps": 6})
    ready, state, constants, feeds, seeds, names = start(spec)
    chunk = compile_chunk([(ready.program, frozenset({"all"}))], 1)
    expected = {path: np.asarray(leaf) for path, leaf in state.trainable.items()}
    for number in range(6):
        state, = chunk((state,), (constants,), (feeds,), (seeds,), np.int32([number]), np.int32([1]))
        rate = min(decay, (1 + number) / (10 + number)) if warmup else decay
        expected = {path: rate * old + (1 - rate) * np.asarray(state.trainable[path]) for path, old in expected.items()}
    for path, leaf in expected.items():
        np.testing.assert_allclose(state.ema[f"params/{path}"], leaf, atol=1e-6, err_msg=path)


def test_bfloat16_computes_low_and_keeps_float32(digits_file):
    low = trained(single(digits_file, {}, {"precision": "bfloat16"}))
    full = trained(single(digits_file, {}))
    assert {leaf.dtype for leaf in jax.tree.leaves(low.after.trainable)} == {np.dtype(np.float32)}
    difference = np.abs(low.metrics["loss"] - full.metrics["loss"])
    assert 0 < difference.max() < 0.1


def test_host_and_device_storage_train_alike(digits_file):
    runs = [trained(single(digits_file, {"steps": 8}, {"streams.train.storage": storage}))
            for storage in ("device", "host")]
    np.testing.assert_allclose(runs[0].metrics["loss"], runs[1].metrics["loss"], atol=1e-5)
    assert {Assembly(single(digits_file, {}, {"streams.train.storage": storage})).stream("train").storage
            for storage in ("device", "host")} == {"device", "host"}
