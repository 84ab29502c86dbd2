"""Combinations in training: gradients of shared leaves, of features, what is carried, and a task that goes bad."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import same_leaves, single, start, trained

from transfer_jax.core.errors import UserError
from transfer_jax.objectives import TERMS
from transfer_jax.training.chunk import compile_chunk
from transfer_jax.training.gradients import task_gradients

SECOND = {"model.heads.second": {"kind": "linear"}, "tasks.second": {"kind": "classification", "head": "second"}}
SGD = {"optimizer": {"kind": "sgd", "momentum": 0.0}, "lr": 0.1, "steps": 1}
TERMS_OF_TWO = {"digits": {"kind": "task", "task": "digits", "stream": "train"},
                "second": {"kind": "task", "task": "second", "stream": "train", "weight": 0.3, "label_smoothing": 0.5}}


def two(digits_file, combine, stage=None, changes=None, **objective):
    combine = {"kind": combine} if isinstance(combine, str) else combine
    stage = {**SGD, **(stage or {}), "objective": {"terms": TERMS_OF_TWO, "combine": combine, **objective}}
    return single(digits_file, stage, {**SECOND, **(changes or {})})


def moves(found):
    """Path -> change of the first step."""
    return {path: found.after.trainable[path] - found.before.trainable[path] for path in found.before.trainable}


@pytest.fixture(scope="module")
def plain(digits_file):
    return trained(two(digits_file, "fixed"))


def close(a, b, atol=1e-6):
    for path in a:
        np.testing.assert_allclose(a[path], b[path], atol=atol, err_msg=path)


@pytest.mark.parametrize("gradients_of", ["shared", "parameters", "pooled", "stage1"])
def test_the_sum_of_gradients_is_the_gradient_of_the_sum_wherever_it_is_taken(digits_file, plain, gradients_of):
    found = trained(two(digits_file, "sum", gradients_of=gradients_of))
    close(moves(found), moves(plain))
    assert found.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-6)
    assert set(found.metrics) >= {"gradient_norm/digits", "gradient_norm/second", "cosine/digits/second",
                                  "weight_digits"}


def test_heads_keep_their_plain_gradients_and_the_trunk_follows_the_rule(digits_file, plain):
    found = moves(trained(two(digits_file, "mgda")))
    changed = {path for path, change in moves(plain).items() if np.abs(change - found[path]).max() > 1e-6}
    assert changed and all(path.startswith("backbone/") for path in changed)
    together = moves(trained(two(digits_file, "mgda", gradients_of="parameters")))
    assert any(np.abs(change - together[path]).max() > 1e-6 for path, change in moves(plain).items()
               if path.startswith("heads/"))


def test_the_features_of_one_tap_give_other_weights_than_parameters(digits_file):
    found = [trained(two(digits_file, "mgda", gradients_of=of)).metrics["weight_second"] for of in
             ("shared", "pooled")]
    assert abs(found[0] - found[1]) > 1e-4


def test_backward_passes_share_their_memory():
    """A further task costs its gradient, twice, and not the activations of one more backward pass."""
    leaves = {f"layer{depth}": jnp.eye(32) for depth in range(6)} | {f"head{task}": jnp.ones(32) for task in range(8)}
    inputs = jnp.ones((2048, 32))

    def memory(tasks):
        def losses(moving):
            x = inputs
            for depth in range(6):
                x = jnp.tanh(x @ moving[f"layer{depth}"])
            return tuple(jnp.mean((x @ moving[f"head{task}"]) ** 2) for task in range(tasks)), ({}, None)

        names = SimpleNamespace(names=tuple(map(str, range(tasks))))
        taken = jax.jit(lambda moving: task_gradients(losses, moving, names, "shared", skip=False)[0].rows)
        return taken.lower(leaves).compile().memory_analysis().temp_size_in_bytes

    gradient = 4 * 6 * 32 * 32
    side_by_side = 6 * 4 * inputs.size
    assert memory(8) - memory(2) <= 6 * 2 * gradient < side_by_side


@pytest.mark.parametrize("kind", ["sum", "grad_norm"])
def test_micro_batches_give_the_gradients_of_the_whole_batch(digits_file, kind):
    runs = [trained(two(digits_file, kind, {"accumulate": count, "steps": 2})) for count in (1, 4)]
    close(runs[0].after.trainable, runs[1].after.trainable, 1e-5)
    np.testing.assert_allclose(runs[0].metrics["cosine/digits/second"], runs[1].metrics["cosine/digits/second"],
                               atol=1e-4)


@pytest.mark.parametrize("kind", ["dynamic_average", "famo", "gradvac", "grad_norm", "auto_lambda"])
def test_what_is_carried_moves_and_a_stopped_run_goes_on_with_it(digits_file, kind):
    combine = {"kind": kind, **({"window": 2} if kind == "dynamic_average" else {})}
    ready, state, constants, feeds, seeds, _ = start(two(digits_file, combine, {"steps": 8}))
    chunk = compile_chunk([(ready.program, frozenset({"all"}))], 1)
    first = jax.device_get(state.carried["combine/0"])

    def steps(state, begin, count):
        return chunk((jax.tree.map(jnp.asarray, state),), (constants,), (feeds,), (seeds,), np.int32([begin]),
                     np.int32([count]))[0]

    held = jax.device_get(state)
    whole = jax.device_get(steps(held, 0, 8))
    half = jax.device_get(steps(held, 0, 5))  # as a checkpoint holds it
    assert same_leaves(jax.device_get(steps(half, 5, 3)), whole)
    key = {"famo": "logits", "gradvac": "targets", "dynamic_average": "last"}.get(kind, "weights")
    assert np.isfinite(whole.carried["combine/0"][key]).all()
    assert np.abs(whole.carried["combine/0"][key] - first[key]).max() > 1e-5


def test_a_lookahead_on_other_batches_changes_the_weights(digits_file):
    other = {"streams.other": {"data": {"kind": "arrays", "path": str(digits_file)}, "split": "test", "batch_size": 8}}
    combine = {"kind": "auto_lambda", "reach": 1.0, "lr": 0.1, "primary": ("digits",)}
    spec = two(digits_file, combine, {"steps": 3}, other, lookahead={"train": "other"})
    found, same = trained(spec), trained(two(digits_file, combine, {"steps": 3}))
    assert not np.allclose(found.after.carried["combine/0"]["optimizer"][0].mu,
                           same.after.carried["combine/0"]["optimizer"][0].mu, rtol=1e-3)


def spoilt(logits, labels, weights, progress, *, at: float = 0.5, of: str = "loss"):
    """The mean of squares, infinite, or with a gradient that is no number, in the steps after a share of the stage."""
    value = jnp.mean(jnp.square(logits))
    bad = progress >= at
    return jnp.where(bad, jnp.inf, 1.0) * value if of == "loss" else jnp.sqrt(jnp.where(bad, 0 * value, 1.0)) + value


@pytest.mark.parametrize("kind, of", [("fixed", "loss"), ("fixed", "gradient"), ("mgda", "loss"), ("mgda", "gradient"),
                                      ("uncertainty", "loss"), ("geometric_mean", "loss"), ("famo", "loss")])
def test_a_bad_task_is_named_or_left_out(digits_file, monkeypatch, kind, of):
    monkeypatch.setitem(TERMS, "spoilt", spoilt)
    terms = {**TERMS_OF_TWO, "a_bad": {"kind": "spoilt", "stream": "train", "task": "digits", "of": of}}

    def experiment(**objective):
        stage = {**SGD, "steps": 2, "lr": 1e-3, "objective": {"terms": terms, "combine": {"kind": kind}, **objective}}
        return single(digits_file, stage, SECOND)

    if kind == "mgda" or (kind, of) == ("fixed", "loss"):
        named = "a_bad" if of == "loss" else "gradient_norm/a_bad"
        with pytest.raises(UserError, match=f"'{named}' became NaN or infinite at step 2"):
            trained(experiment())
    found = trained(experiment(on_bad_task="skip"))
    assert found.metrics["a_bad/skipped"].ravel().tolist() == [0, 1] and not found.metrics["digits/skipped"].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.after))
    assert not same_leaves(found.after.trainable, found.before.trainable)
    if kind == "fixed":  # the loss is that of the others
        losses = {name: found.metrics[name][1] for name in ("loss", "digits", "second")}
        np.testing.assert_allclose(losses["loss"], losses["digits"] + 0.3 * losses["second"], rtol=1e-5)


def test_choices_that_do_not_go_together(digits_file):
    for stage, objective, text in (
            ({}, {"combine": "fixed", "gradients_of": "pooled"}, "combines losses"),
            ({}, {"combine": "mgda", "gradients_of": "nothing"}, "no stream of the update gives a tap"),
            ({}, {"combine": "mgda", "lookahead": {"train": "train"}}, "does not look ahead"),
            ({}, {"combine": "auto_lambda", "gradients_of": "pooled"}, "looks ahead along gradients"),
            ({"accumulate": 2}, {"combine": "mgda", "gradients_of": "pooled"}, "set accumulate=1"),
            ({"accumulate": 2}, {"combine": "famo"}, "set accumulate=1"),
            ({}, {"combine": {"kind": "auto_lambda", "primary": ("digit",)}}, "did you mean 'digits'"),
            ({}, {"combine": {"kind": "famo", "rate": 1.0}}, "'rate'")):
        combine = objective.pop("combine")
        with pytest.raises(UserError, match=text):
            start(two(digits_file, combine, stage, **objective))
