"""Stages that measure the start before their first step, and noise toward the start, in real runs."""

import shutil

import jax
import numpy as np
import pytest
import tiny_experiment
from tiny_experiment import same_leaves

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.workdir import Workdir

DIGITS = {"kind": "task", "task": "digits", "stream": "train"}
TERMS = {
    "ewc": {"kind": "ewc", "measured_on": "test", "head": "digits", "strength": 50.0},
    "co_tuning": {"kind": "co_tuning", "task": "digits", "head": "source", "stream": "train", "weight": 2.3},
    "delta": {"kind": "delta", "task": "digits", "stream": "train", "tap": "stage1", "alpha": 10.0,
              "measured_examples": 64},
}


def values(digits_file, *terms, **stage):
    found = tiny_experiment.config(digits_file, {
        "model.heads.source": {"kind": "linear"}, "model.backbones.backbone.norm": "batch",
        "tasks.source": {"kind": "classification", "head": "source", "class_names_from": "train"}})
    first = found["stages"]["pretrain"]
    both = {"digits": DIGITS, "source": {**DIGITS, "task": "source"}}
    tuned = {**first, "init": "pretrain", "objective": {"terms": {"digits": DIGITS, **{
        name: TERMS[name] for name in terms}}}, **stage}
    return {**found, "stages": {"pretrain": {**first, "objective": {"terms": both}}, "tuned": tuned}}


def test_a_stopped_stage_goes_on_with_what_it_measured(digits_file, tmp_path):
    config = values(digits_file, *TERMS, weight_noise={"kind": "mixout", "p": 0.5}, stochastic_norm=0.5)
    run = tiny_experiment.run(config, tmp_path)
    whole, plain = (run.result(name, "last")[0] for name in ("tuned", "pretrain"))
    kept = Workdir(tmp_path).checkpoints("tuned").restore()[1]["constants"]["statistics"]
    assert set(kept) == {"ewc/fisher", "co_tuning/relationship", "delta/channel_weights"}
    assert any(not np.array_equal(whole[path], plain[path]) for path in whole)
    shutil.rmtree(tmp_path / "checkpoints" / "tuned" / "6")
    (tmp_path / "stages" / "tuned.json").unlink()
    assert same_leaves(tiny_experiment.run(config, tmp_path).result("tuned", "last")[0], whole)


def examples(assembly, name):
    """All examples of a stream as the network sees them."""
    stream, feed = assembly.stream(name), assembly.feed(name)
    return jax.device_get(stream.evaluation_batch({**feed, "rows": feed["rows"][0]}, 0, stream.size))


def test_the_engine_measures_what_a_loop_over_the_examples_gives(digits_file):
    spec = tiny_experiment.single(digits_file, {"steps": 1, "objective": {"terms": {
        "digits": DIGITS, "ewc": TERMS["ewc"], "delta": {**TERMS["delta"], "measured_examples": None},
        "co_tuning": {**TERMS["co_tuning"], "head": "digits"}}}}, {"model.backbones.backbone.norm": "batch"})
    found = tiny_experiment.trained(spec)
    data = {name: examples(Assembly(spec), name) for name in ("train", "test")}
    model, statistics = found.ready.program.model, found.constants.statistics
    params, stats = (jax.tree.map(lambda leaf: leaf[0], tree)
                     for tree in (found.before.trainable, found.before.batch_stats))

    def logits(own, images, edits=None):
        variables = {"params": unflatten(own), "batch_stats": stats}
        taps, _ = model.taps(variables, {"backbone": images}, edits=edits)
        return model.head(variables, "digits", taps, (8, 8))[0]

    def score(own, image, k):
        return jax.nn.log_softmax(logits(own, image[None])[0])[k]

    gradient = jax.jit(jax.vmap(jax.grad(score), (None, None, 0)))
    total = dict.fromkeys(params, 0.0)
    for image in data["test"]["image"]:
        p = np.asarray(jax.nn.softmax(logits(params, image[None])[0]), np.float64)
        for path, leaf in gradient(params, image, np.arange(10)).items():
            total[path] += np.tensordot(p, np.square(np.asarray(leaf, np.float64)), 1) / len(data["test"]["image"])
    for path, expected in total.items():
        np.testing.assert_allclose(statistics["ewc/fisher"][path][0], expected, rtol=1e-3, atol=1e-7, err_msg=path)

    x, y = data["train"]["image"], data["train"]["label"]
    p = np.asarray(jax.nn.softmax(logits(params, x)), np.float64)
    np.testing.assert_allclose(statistics["co_tuning/relationship"][0],
                               [p[y == label].mean(0) for label in range(10)], rtol=1e-4)

    def loss(mask):
        z = logits(params, x, {"stage1": lambda tap: tap * mask})
        return -np.asarray(jax.nn.log_softmax(z), np.float64)[np.arange(len(y)), y].mean()

    rises = np.array([loss(1 - np.eye(4)[c]) - loss(np.ones(4)) for c in range(4)])
    np.testing.assert_allclose(statistics["delta/channel_weights"][0], 4 * np.exp(rises) / np.exp(rises).sum(),
                               rtol=1e-4)


@pytest.mark.parametrize(("stage", "words"), [
    ({"weight_noise": {"kind": "mixout", "p": 1.0}}, "no probability below 1"),
    ({"weight_noise": {"kind": "mixout", "include": "nothing"}}, "matches none of the"),
    ({"weight_noise": {"kind": "mixup"}}, "did you mean 'mixout'"),
    ({"objective": {"terms": {"d": DIGITS, "e": {**TERMS["delta"], "tap": "stage9"}}}}, "stage9"),
    ({"objective": {"terms": {"d": DIGITS, "e": {**TERMS["ewc"], "measured_on": "tset"}}}}, "did you mean 'test'"),
])
def test_faults_stop_before_training(stage, words, digits_file, tmp_path):
    with pytest.raises(UserError, match=words):
        tiny_experiment.run(values(digits_file, **stage), tmp_path)
