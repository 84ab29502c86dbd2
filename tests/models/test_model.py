"""The model: init by name, taps by backbone, statistics, frozen norms, members under vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten
from transfer_jax.core.spec import Component, build
from transfer_jax.models.model import ModelSpec, build_model

X = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
NET = {"kind": "small_cnn", "widths": (4, 8), "norm": "batch"}


@functools.cache
def model(backbones=("backbone",), heads=("digits",)):
    spec = build(ModelSpec, {"backbones": {name: NET for name in backbones}})
    return build_model(spec, {name: Component(kind="linear", classes=3) for name in heads})


@functools.cache
def compiled_init(names):
    inputs = {name: jax.ShapeDtypeStruct(X.shape, X.dtype) for name in names[0]}
    return jax.jit(lambda key: model(*names).init(key, inputs))


def start(subject, seed=7):
    return compiled_init((tuple(subject.backbones), tuple(subject.heads)))(jax.random.key(seed))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_layout_of_variables():
    variables = start(model(("backbone", "target")))
    assert set(variables["params"]) == {"backbone", "target", "heads"}
    assert set(variables["batch_stats"]) == {"backbone", "target"}
    assert flatten(variables["params"])["heads/digits/dense/kernel"].shape == (8, 3)


def test_init_of_a_part_depends_on_its_name_and_the_key_only():
    small, large = start(model()), start(model(("other", "backbone"), ("scenes", "digits")))
    equal(small["params"]["backbone"], large["params"]["backbone"])
    equal(small["params"]["heads"]["digits"], large["params"]["heads"]["digits"])
    kernels = [tree["stage1_conv1"]["kernel"] for tree in (large["params"]["backbone"], large["params"]["other"])]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 1e-3
    assert float(jnp.abs(start(model(), 8)["params"]["backbone"]["stage1_conv1"]["kernel"] - kernels[0]).max()) > 1e-3


def test_taps_of_other_backbones_carry_their_name():
    subject = model(("backbone", "target"))
    variables = start(subject)
    taps, moved = subject.taps(variables, {"backbone": X, "target": X})
    assert set(taps) == {"stage1", "stage2", "pooled", "target/stage1", "target/stage2", "target/pooled"}
    assert moved == {}
    only, _ = subject.taps(variables, {"target": X})
    assert set(only) == {"target/stage1", "target/stage2", "target/pooled"}
    view = {tap: taps[f"target/{tap}"] for tap in ("stage1", "stage2", "pooled")}
    scores, _ = subject.head(variables, "digits", view)
    equal(scores, subject.head(variables, "digits", taps["target/pooled"])[0])


def test_training_moves_statistics_and_frozen_norms_do_not_move():
    subject = model()
    variables = start(subject)
    paths = subject.norm_paths(variables)
    assert paths == ("backbone/stage1_norm1", "backbone/stage2_norm1")
    _, moved = subject.taps(variables, {"backbone": X}, train=True)
    assert float(jnp.abs(moved["backbone"]["stage1_norm1"]["mean"]).max()) > 1e-4
    _, half = subject.taps(variables, {"backbone": X}, train=True, frozen_norms=frozenset(paths[:1]))
    equal(half["backbone"]["stage1_norm1"], variables["batch_stats"]["backbone"]["stage1_norm1"])
    assert float(jnp.abs(half["backbone"]["stage2_norm1"]["mean"]).max()) > 1e-4
    frozen, still = subject.taps(variables, {"backbone": X}, train=True, frozen_norms=frozenset(paths))
    equal(still, {"backbone": variables["batch_stats"]["backbone"]})
    equal(frozen, subject.taps(variables, {"backbone": X})[0])


def test_members_train_together_as_they_train_alone():
    subject = model()
    init = jax.jit(jax.vmap(lambda key: subject.init(key, {"backbone": X})))
    members = init(jax.random.split(jax.random.key(1), 3))
    images = jnp.stack([X, X + 1, 2 * X])

    def gradients(variables, x):
        def loss(params):
            taps, moved = subject.taps({**variables, "params": params}, {"backbone": x}, train=True)
            scores, _ = subject.head({"params": params}, "digits", taps, train=True)
            return jax.nn.logsumexp(scores, -1).sum(), moved
        return jax.grad(loss, has_aux=True)(variables["params"])

    together = jax.jit(jax.vmap(gradients))(members, images)
    one = jax.jit(gradients)
    for i in range(3):
        alone = one(jax.tree.map(lambda leaf, i=i: leaf[i], members), images[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=2e-4), together, alone)


def test_dropout_key_reaches_the_head():
    spec = build(ModelSpec, {"backbones": {"backbone": NET}})
    subject = build_model(spec, {"h": Component(kind="mlp", outputs=2, dropout=0.5)})
    variables = subject.init(jax.random.key(0), {"backbone": X})
    taps, _ = subject.taps(variables, {"backbone": X})
    one, two = (subject.head(variables, "h", taps, train=True, rngs={"dropout": jax.random.key(i)})[0] for i in (0, 1))
    assert float(jnp.abs(one - two).max()) > 1e-4


def test_unknown_names_are_named():
    subject = model()
    variables = start(subject)
    with pytest.raises(UserError, match="digits"):
        subject.head(variables, "digit", X)
    with pytest.raises(UserError, match="backbone"):
        subject.taps(variables, {"backbon": X})
    with pytest.raises(UserError, match="widths"):
        build_model(ModelSpec(backbones={"backbone": Component(kind="small_cnn", width=3)}), {})
