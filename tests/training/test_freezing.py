"""What is frozen costs nothing and does not change, statistics of BatchNorm included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import same_leaves, single, start, trained

from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.params.optimizer_tree import state_bytes
from transfer_jax.training.step import train_step

FREEZE = {"partition": (("heads/.*", "head"), (".*", "frozen")), "groups": {"head": {}}}
BATCH_NORM = {"model.backbones.backbone.norm": "batch"}


def flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def member(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def test_a_frozen_backbone_costs_its_forward_pass_and_the_head(digits_file):
    """Compiled FLOPs within 5 % of forward pass + training of the head alone; the whole network costs far more."""
    wide = {"model.backbones.backbone.widths": (16, 32), "streams.train.batch_size": 32}

    def step_flops(stage):
        ready, state, constants, feeds, seeds, _ = start(single(digits_file, stage, wide))
        program = ready.program
        active = program.partition.active(0)
        feed = {"train": {name: part if name != "rows" else part[0] for name, part in feeds["train"].items()}}
        return program, state, constants, feed, flops(
            lambda s, c, f, d: train_step(program, active, s, c, f, {"data": d, "step": d}, jnp.int32(0)),
            member(state), member(constants), feed, jnp.uint32(0))

    program, state, constants, feed, frozen = step_flops(FREEZE)
    params = {**member(state.trainable), **member(constants.frozen)}
    stream, model = program.streams["train"], program.model

    def forward_and_head(params, feed, seed):
        batch = stream.batch(feed, seed, jnp.int32(0))
        taps, _ = model.taps({"params": unflatten(params)}, {"backbone": batch["image"]}, train=True)

        def loss(head):
            logits, _ = model.head({"params": unflatten({**params, **head})}, "digits", taps, (8, 8), train=True)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1).mean()

        return jax.grad(loss)({path: leaf for path, leaf in params.items() if path.startswith("heads/")})

    reference = flops(forward_and_head, params, feed["train"], jnp.uint32(0))
    *_, full = step_flops({})
    assert frozen == pytest.approx(reference, rel=0.05)
    assert full > 1.5 * frozen


def test_frozen_leaves_have_no_optimizer_state_and_no_gradient(digits_file):
    ready, state, constants, *_ = start(single(digits_file, FREEZE))
    head = sum(leaf.size for leaf in state.trainable.values())
    assert all(path.startswith("heads/") for path in state.trainable)
    assert all(path.startswith("backbone/") for path in constants.frozen)
    assert state_bytes(state.opt_state) == 2 * 4 * head + 8
    row = next(row for row in ready.table() if row["group"] == "frozen")
    assert row["optimizer_bytes"] == 0 and row["parameters"] == sum(leaf.size for leaf in constants.frozen.values())


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_frozen_parameters_and_statistics_are_bit_identical_after_twenty_steps(digits_file, seeds):
    spec = single(digits_file, {**FREEZE, "ema": {}}, {**BATCH_NORM, "seeds": seeds})
    _, _, constants, *_ = start(spec)
    found = trained(spec)
    assert same_leaves(found.before.batch_stats, found.after.batch_stats)
    assert same_leaves(jax.device_get(constants.frozen), jax.device_get(found.constants.frozen))
    assert not same_leaves(found.before.trainable, found.after.trainable)


def test_statistics_move_where_the_layer_trains_and_only_there(digits_file):
    rules = {"partition": ((".*stage1.*", "frozen"), (".*", "rest")), "groups": {"rest": {}}, "steps": 3}
    found = trained(single(digits_file, rules, BATCH_NORM))
    before, after = flatten(found.before.batch_stats), flatten(found.after.batch_stats)
    assert before and all(np.array_equal(before[path], after[path]) == ("stage1" in path) for path in before)


def test_stored_statistics_everywhere_while_everything_trains(digits_file):
    found = trained(single(digits_file, {"batch_norm": "stored", "steps": 3}, BATCH_NORM))
    assert same_leaves(found.before.batch_stats, found.after.batch_stats)
    assert not same_leaves(found.before.trainable, found.after.trainable)


def test_a_late_group_stands_still_until_its_step_and_then_moves(digits_file):
    late = {"partition": (("heads/.*", "head"), (".*", "late")), "groups": {"head": {}, "late": {"unfreeze_at": 4}},
            "optimizer": {"kind": "sgd"}, "lr": 0.05}
    frozen = trained(single(digits_file, {**FREEZE, "optimizer": {"kind": "sgd"}, "lr": 0.05, "steps": 4}, BATCH_NORM))
    still = trained(single(digits_file, {**late, "steps": 4}, BATCH_NORM))
    moved = trained(single(digits_file, {**late, "steps": 5}, BATCH_NORM))
    body = [path for path in still.after.trainable if path.startswith("backbone")]
    assert all(np.array_equal(still.after.trainable[path], still.before.trainable[path]) for path in body)
    assert same_leaves(still.after.batch_stats, still.before.batch_stats)
    assert not same_leaves(moved.after.batch_stats, still.after.batch_stats)
    assert not any(np.array_equal(moved.after.trainable[path], still.after.trainable[path]) for path in body
                   if path.endswith("kernel"))
    np.testing.assert_allclose(still.metrics["loss"], frozen.metrics["loss"], atol=1e-5)
    assert jax.tree.structure(still.before.opt_state) == jax.tree.structure(moved.after.opt_state)


def test_heads_that_no_term_runs_are_put_aside(digits_file):
    spec = single(digits_file, {"steps": 1}, {"model.heads.spare": {"kind": "linear", "classes": 3}})
    ready, state, constants, *_ = start(spec)
    assert {path for path, group in ready.program.partition.group_of.items() if group == "unused"} == {
        "heads/spare/dense/kernel", "heads/spare/dense/bias"} == {
        path for path in constants.frozen if path.startswith("heads/spare")}
    assert not any(path.startswith("heads/spare") for path in state.trainable)
