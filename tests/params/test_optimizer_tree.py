"""The one optax tree of a stage against optax written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.params.optimizer_tree import (
    GroupDefaults,
    apply_groups,
    group_table,
    make_optimizer,
    peak_rates,
    state_bytes,
)
from transfer_jax.params.partition import GroupSpec, partition

SHAPES = {"backbone/conv1/kernel": (3, 3, 1, 4), "backbone/conv1/bias": (4,), "backbone/conv2/kernel": (3, 3, 4, 8),
          "heads/digits/kernel": (8, 10), "heads/digits/bias": (10,)}
DEPTHS = {"backbone/conv1/kernel": 0, "backbone/conv1/bias": 0, "backbone/conv2/kernel": 1, "heads/digits/kernel": 2,
          "heads/digits/bias": 2}
TOTAL = 5


def values(seed):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}


def defaults(**more):
    return GroupDefaults(**{"optimizer": Component(kind="adam"), "lr": 0.1, "schedule": Component(kind="constant"),
                            "warmup_steps": 0, "weight_decay": 0.0, **more})


def engine(rules, groups, base, steps=TOTAL, gradients=None):
    """Parameters after `steps`, the tree's state at the start and at the end, and the partition."""
    parts = partition(list(SHAPES), rules, groups)
    optimizer = make_optimizer(parts, base, TOTAL, DEPTHS, peak_rates(groups, base))
    params = {path: leaf for path, leaf in values(0).items() if path in parts.trainable}
    first = state = optimizer.init(params)
    for step in range(steps):
        grads = {path: leaf for path, leaf in values(step + 1).items()
                 if parts.group_of[path] in parts.active(step)}
        params, state = apply_groups(optimizer, grads, state, params, parts, parts.active(step))
    return params, first, state, parts


def by_hand(transform, paths, steps=range(TOTAL)):
    params = {path: values(0)[path] for path in paths}
    state = transform.init(params)
    for step in steps:
        updates, state = transform.update({path: values(step + 1)[path] for path in paths}, state, params)
        params = optax.apply_updates(params, updates)
    return params


def kernels(tree):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


@pytest.mark.parametrize(("component", "decay", "reference"), [
    (Component(kind="sgd"), 0.0, optax.sgd(0.1, momentum=0.9)),
    (Component(kind="sgd", momentum=0.0), 0.0, optax.sgd(0.1)),
    (Component(kind="sgd", nesterov=True), 0.01,
     optax.chain(optax.add_decayed_weights(0.01, mask=kernels), optax.sgd(0.1, momentum=0.9, nesterov=True))),
    (Component(kind="adam"), 0.0, optax.adam(0.1)),
    (Component(kind="adamw", b2=0.99), 0.05, optax.adamw(0.1, b2=0.99, weight_decay=0.05, mask=kernels)),
    (Component(kind="lamb"), 0.01, optax.lamb(0.1, weight_decay=0.01, mask=kernels)),
    (Component(kind="lion"), 0.01, optax.lion(0.1, weight_decay=0.01, mask=kernels)),
    (Component(kind="prodigy", d0=1e-3), 0.0, optax.contrib.prodigy(0.1, estim_lr0=1e-3)),
    (Component(kind="dadapt_adam"), 0.0, optax.contrib.dadapt_adamw(0.1)),
])
def test_five_steps_equal_optax(component, decay, reference):
    found, *_ = engine(((".*", "all"),), {"all": GroupSpec()}, defaults(optimizer=component, weight_decay=decay))
    for path, leaf in by_hand(reference, list(SHAPES)).items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("kind", ["prodigy", "dadapt_adam"])
def test_optimizers_without_a_rate_find_their_step_at_every_scale(kind, scale):
    goal = scale * jnp.arange(1.0, 5.0)
    parts = partition(["w"], ((".*", "all"),), {"all": GroupSpec()})
    base = defaults(optimizer=Component(kind=kind), lr=1.0, schedule=Component(kind="cosine"))
    optimizer = make_optimizer(parts, base, 400, {"w": 0}, {"all": 1.0})

    def step(carry, _):
        params, state = carry
        grads = {"w": (params["w"] - goal) / scale}
        return apply_groups(optimizer, grads, state, params, parts, frozenset({"all"})), None

    params = {"w": jnp.zeros(4)}
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, 400)
    np.testing.assert_allclose(params["w"], goal, rtol=0.05)


@pytest.mark.parametrize("kind", ["prodigy", "dadapt_adam"])
def test_they_take_no_decay_that_they_could_not_mask(kind):
    with pytest.raises(UserError, match="takes no weight_decay"):
        engine(((".*", "all"),), {"all": GroupSpec()}, defaults(optimizer=Component(kind=kind), weight_decay=0.1))


def test_each_group_has_its_own_optimizer_rate_and_decay():
    rules = (("heads/.*", "head"), (".*conv1.*", "frozen"), (".*", "body"))
    groups = {"head": GroupSpec(optimizer=Component(kind="sgd"), lr=0.3),
              "body": GroupSpec(lr_multiplier=0.1, weight_decay=0.01)}
    found, *_ = engine(rules, groups, defaults())
    head = by_hand(optax.sgd(0.3, momentum=0.9), ["heads/digits/kernel", "heads/digits/bias"])
    body = by_hand(optax.adamw(0.01, weight_decay=0.01), ["backbone/conv2/kernel"])
    assert set(found) == {*head, *body}
    for path, leaf in {**head, **body}.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)


def test_biases_do_not_decay():
    found, *_ = engine(((".*", "all"),), {"all": GroupSpec()},
                       defaults(optimizer=Component(kind="adam"), weight_decay=1.0), steps=1)
    bare, *_ = engine(((".*", "all"),), {"all": GroupSpec()}, defaults(), steps=1)
    for path in SHAPES:
        assert np.allclose(found[path], bare[path]) == path.endswith("bias"), path


def test_layer_decay_divides_the_rate_by_depth():
    base = defaults(optimizer=Component(kind="sgd", momentum=0.0))
    found, *_ = engine(((".*", "all"),), {"all": GroupSpec(layer_decay=0.5)}, base, steps=1)
    for path, depth in DEPTHS.items():
        expected = values(0)[path] - 0.1 * 0.5 ** (2 - depth) * values(1)[path]
        np.testing.assert_allclose(found[path], expected, rtol=1e-6, atol=1e-7, err_msg=path)


def test_a_late_group_keeps_one_tree_and_equals_training_that_begins_then():
    rules = (("heads/.*", "head"), (".*", "late"))
    late = ["backbone/conv1/kernel", "backbone/conv1/bias", "backbone/conv2/kernel"]
    found, first, last, _ = engine(rules, {"head": GroupSpec(), "late": GroupSpec(unfreeze_at=2)}, defaults())
    assert jax.tree.structure(first) == jax.tree.structure(last)
    expected = {**by_hand(optax.adam(0.1), late, range(2, TOTAL)),
                **by_hand(optax.adam(0.1), ["heads/digits/kernel", "heads/digits/bias"])}
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)


def test_groups_that_do_not_move_keep_parameters_and_state_bit_for_bit():
    rules = (("heads/.*", "head"), (".*", "body"))
    groups = {"head": GroupSpec(), "body": GroupSpec()}
    params, _, state, parts = engine(rules, groups, defaults(weight_decay=0.1))
    optimizer = make_optimizer(parts, defaults(weight_decay=0.1), TOTAL, DEPTHS, peak_rates(groups, defaults()))
    grads = {path: leaf for path, leaf in values(9).items() if parts.group_of[path] == "head"}
    new, moved = apply_groups(optimizer, grads, state, params, parts, frozenset({"head"}))
    assert all(np.array_equal(new[path], params[path]) == (parts.group_of[path] == "body") for path in params)
    assert jax.tree.all(jax.tree.map(np.array_equal, moved.inner_states["body"], state.inner_states["body"]))


def test_frozen_leaves_have_no_optimizer_bytes_and_the_table_says_so():
    rules = (("heads/.*", "head"), (".*conv1.*", "frozen"), (".*", "body"))
    groups = {"head": GroupSpec(lr=0.5), "body": GroupSpec(optimizer=Component(kind="sgd"), unfreeze_at=3)}
    parts = partition(list(SHAPES), rules, groups)
    optimizer = make_optimizer(parts, defaults(), TOTAL, DEPTHS, peak_rates(groups, defaults()))
    rows = {row["group"]: row for row in group_table(parts, values(0), defaults(), optimizer)}
    assert rows["frozen"]["optimizer_bytes"] == 0 and rows["frozen"]["frozen"] and rows["frozen"]["lr"] == 0
    assert rows["frozen"]["parameters"] == 40 and rows["frozen"]["tensors"] == 2
    assert rows["head"]["optimizer_bytes"] == 2 * 4 * 90 + 8  # two moments, and the counts of Adam and the schedule
    assert rows["body"]["optimizer_bytes"] == 4 * 288 + 4
    assert rows["body"]["unfreeze_at"] == 3 and rows["body"]["optimizer"] == "sgd" and rows["head"]["lr"] == 0.5
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert state_bytes(optimizer.init({path: values(0)[path] for path in parts.trainable})) == sum(
        row["optimizer_bytes"] for row in rows.values())
