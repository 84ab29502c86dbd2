"""Affinity of tasks: against two steps of brute force, a closed form, and the engine's own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import single, start, trained

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.objectives.combining import Combination, make_combination
from transfer_jax.objectives.spec import TermSpec
from transfer_jax.objectives.wiring import make_term
from transfer_jax.tasks import TaskSpec
from transfer_jax.training.affinity import affinities

RATE = 0.07


def combination(names) -> Combination:
    tasks = {"t": TaskSpec(kind="classification", head="h")}
    terms = [make_term(name, TermSpec(kind="task", task="t", stream="s"), tasks, "where") for name in names]
    return make_combination(Component(kind="fixed"), terms, "where")


def network(leaves, task, x, y):
    hidden = jnp.tanh(x @ leaves["trunk/first"]) @ leaves["trunk/second"]
    return jnp.mean((hidden @ leaves[f"heads/{task}"] - y) ** 2)


def test_three_tasks_are_two_steps_of_brute_force_in_float64():
    rng, names = np.random.default_rng(0), ("a", "b", "c")
    with jax.enable_x64():
        leaves = {"trunk/first": rng.normal(size=(5, 7)), "trunk/second": rng.normal(size=(7, 4)) / 3,
                  **{f"heads/{name}": rng.normal(size=(4, 2)) for name in names}}
        data = {name: (rng.normal(size=(6, 5)), rng.normal(size=(6, 2))) for name in names}

        def losses(moving, edits=None):
            return tuple(network(moving, name, *data[name]) for name in names), ({}, None)

        found, gradients = affinities(losses, jax.tree.map(jnp.asarray, leaves), combination(names), RATE)
        assert gradients.shape == (3, 5 * 7 + 7 * 4)  # of the trunk alone
        for i, mine in enumerate(names):
            slopes = jax.grad(network)(leaves, mine, *data[mine])
            moved = {path: leaf - RATE * slopes[path] if path.startswith("trunk/") else leaf
                     for path, leaf in leaves.items()}
            for j, other in enumerate(names):
                before, after = (float(network(at, other, *data[other])) for at in (leaves, moved))
                assert found[i, j] == pytest.approx(1 - after / before, abs=1e-12)
        assert np.abs(found).max() > 0.01 and (np.asarray(found) != np.asarray(found).T).any()


def test_quadratics_have_their_closed_form():
    """L_j = (x - c_j)' H_j (x - c_j) / 2 + 1; a step on L_i brings x to x - r H_i (x - c_i)."""
    rng = np.random.default_rng(1)
    with jax.enable_x64():
        centres, roots = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3))
        curves, x = roots @ roots.transpose(0, 2, 1), rng.normal(size=3)

        def value(j, at):
            return (at - centres[j]) @ curves[j] @ (at - centres[j]) / 2 + 1

        found, _ = affinities(lambda moving, edits=None: (tuple(value(j, moving["x"]) for j in range(2)), ({}, None)),
                              {"x": jnp.asarray(x)}, combination(("a", "b")), RATE)
        slopes = [curves[i] @ (x - centres[i]) for i in range(2)]
        expected = [[(RATE * slopes[j] @ slopes[i] - RATE ** 2 / 2 * slopes[i] @ curves[j] @ slopes[i]) / value(j, x)
                     for j in range(2)] for i in range(2)]
        np.testing.assert_allclose(found, expected, atol=1e-12)


SECOND = {"model.heads.second": {"kind": "linear"}, "tasks.second": {"kind": "classification", "head": "second"},
          "streams.train.batch_size": 240}  # all of it, so that the next batch is the same
SGD = {"optimizer": {"kind": "sgd", "momentum": 0.0}, "lr": 1.0, "partition": (("backbone/.*", "trunk"),
                                                                                 (".*", "frozen")),
       "groups": {"trunk": {}}}


def two(digits_file, steps, weight=0.5, stage=None, **objective):
    terms = {name: {"kind": "task", "task": name, "stream": "train", "weight": share, "label_smoothing": smooth}
             for name, share, smooth in (("digits", 1.0, 0.0), ("second", weight, 0.5))}
    return single(digits_file, {**SGD, "steps": steps, **(stage or {}), "objective": {"terms": terms, **objective}},
                  SECOND)


def test_the_engine_measures_what_its_own_step_does_at_its_interval_and_changes_nothing_else(digits_file):
    own = trained(two(digits_file, 2, weight=0.0)).metrics  # a step on the first loss alone, then both again
    asked = {"affinity": {"every": 2, "rate": 1.0}}
    found, without = trained(two(digits_file, 4, **asked)), trained(two(digits_file, 4))
    for name in ("digits", "second"):
        gain = 1 - own[name][1, 0] / own[name][0, 0]
        assert found.metrics[f"affinity/digits/{name}"][0, 0] == pytest.approx(gain, rel=1e-3) and abs(gain) > 1e-3
    seen = np.isfinite(found.metrics["affinity/digits/second"][:, 0])
    assert seen.tolist() == [True, False, True, False]
    assert {name for name in found.metrics if name not in without.metrics} == {
        "cosine/digits/second", *(f"affinity/{a}/{b}" for a in ("digits", "second") for b in ("digits", "second"))}
    for path, leaf in without.after.trainable.items():
        np.testing.assert_allclose(found.after.trainable[path], leaf, atol=1e-6, err_msg=path)
    ruled = trained(two(digits_file, 1, combine={"kind": "sum"}, **asked))  # which logs cosines in every step anyway
    for name in ("cosine/digits/second", "affinity/second/digits"):
        np.testing.assert_allclose(ruled.metrics[name][0], found.metrics[name][0], rtol=2e-3, atol=1e-5)


def test_what_cannot_be_compared_is_told(digits_file):
    asked = {"every": 2}
    apart = {"partition": (("heads/.*", "heads"), (".*", "frozen")), "groups": {"heads": {}}}
    for stage, objective, words in (({"accumulate": 2}, {}, "accumulate = 2 cuts the batch"),
                                    ({}, {"sampling": {"kind": "proportional"}}, "trains one task a step"),
                                    (apart, {}, "no parameter is reached by two")):
        with pytest.raises(UserError, match=words):
            start(two(digits_file, 1, stage=stage, affinity=asked, **objective))
    with pytest.raises(UserError, match="there is one"):
        start(single(digits_file, {"objective": {"affinity": asked, "terms": {
            "digits": {"kind": "task", "task": "digits", "stream": "train"}}}}))
