"""Stages that measure the start before their first step, and noise toward the start, in real runs."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_experiment
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from tiny_experiment import same_leaves

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.measuring import Measuring
from transfer_jax.experiment.results import stage_statistics
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import fresh_variables, prepare
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.objectives.statistics import reversed_relationship

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


def test_the_relationship_is_measured_with_the_temperature_of_held_out_source_data(digits_file):
    source = {"kind": "co_tuning", "task": "digits", "head": "source", "stream": "train", "calibrated_on": "test"}
    spec = tiny_experiment.single(digits_file, {"objective": {"terms": {
        "digits": DIGITS, "directly": source, "reversed": {**source, "reverse": True}}}}, {
        "model.heads.source": {"kind": "linear"},
        "tasks.source": {"kind": "classification", "head": "source", "class_names_from": "train"}})
    assembly = Assembly(spec)
    ready = prepare(assembly, "only")
    params, stats = fresh_variables(assembly)
    data = {name: examples(assembly, name) for name in ("train", "test")}

    def pooled(images):
        variables = {"params": unflatten({path: leaf[0] for path, leaf in params.items()})}
        return np.asarray(assembly.model.taps(variables, {"backbone": images})[0]["pooled"], np.float64)

    x = {name: pooled(batch["image"]) for name, batch in data.items()}
    kernel = np.linalg.lstsq(x["train"], 30 * np.eye(10)[data["train"]["label"]], rcond=1e-3)[0]
    params = {**params, "heads/source/dense/kernel": np.float32(kernel)[None]}
    found = Measuring(assembly, ready).values(params, stats)
    labels = data["test"]["label"]

    def loss(log_temperature):
        return -log_softmax(x["test"] @ kernel / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    temperature = np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x)
    assert abs(temperature - 1) > 0.2
    p, y = softmax(x["train"] @ kernel / temperature, axis=1), data["train"]["label"]
    np.testing.assert_allclose(found["directly/relationship"][0], [p[y == label].mean(0) for label in range(10)],
                               rtol=1e-3)
    expected = reversed_relationship(np.float32(p), np.eye(10, dtype=np.float32)[y], np.ones(len(y), np.float32))
    np.testing.assert_allclose(found["reversed/relationship"][0], expected, atol=1e-3)


def test_online_ewc_is_one_decaying_sum_over_the_tasks(digits_file, tmp_path):
    def stage(measured_on, **term):
        ewc = {"kind": "ewc", "measured_on": measured_on, "head": "digits", "strength": 5.0, **term}
        return {"steps": 1, "lr": 0.02, "objective": {"terms": {"digits": DIGITS, "ewc": ewc}}, "evaluate": {}}

    values = tiny_experiment.config(digits_file, {"checkpoint_every": 0})
    first = {**values["stages"]["pretrain"], "steps": 1, "evaluate": {}}
    values["stages"] = {"one": first, "two": stage("test"), "three": stage("train", after="two", decay=0.7),
                        "four": stage("test", after="three", decay=0.5)}
    run = tiny_experiment.run(values, tmp_path)
    data = {name: examples(run.assembly, name) for name in ("train", "test")}
    model = run.assembly.model

    def scores(own, image):
        taps, _ = model.taps({"params": unflatten(own)}, {"backbone": image[None]})
        return jax.nn.log_softmax(model.head({"params": unflatten(own)}, "digits", taps, (8, 8))[0][0])

    @jax.jit
    def information(own, images):
        p = jax.nn.softmax(jax.vmap(scores, (None, 0))(own, images))
        slopes = jax.vmap(jax.jacobian(scores), (None, 0))(own, images)
        return jax.tree.map(lambda g: (g ** 2 * p.reshape(*p.shape, *[1] * (g.ndim - 2))).sum(1).mean(0), slopes)

    before = {"two": ("one", "test"), "three": ("two", "train"), "four": ("three", "test")}
    f2, f3, f4 = (information(jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], run.result(start, "last")[0]),
                              data[stream]["image"]) for start, stream in before.values())
    kept = {name: stage_statistics(run.workdir, name)["ewc/fisher"] for name in before}
    for path in f2:
        for name, expected in (("two", f2[path]), ("three", 0.7 * f2[path] + f3[path]),
                               ("four", 0.5 * (0.7 * f2[path] + f3[path]) + f4[path])):
            np.testing.assert_allclose(kept[name][path][0], expected, rtol=1e-3, atol=1e-6, err_msg=f"{name} {path}")


@pytest.mark.parametrize(("term", "words"), [
    ({**TERMS["ewc"], "after": "pretrian"}, "did you mean 'pretrain'"),
    ({**TERMS["ewc"], "after": "pretrain"}, "has 0 terms of kind 'ewc'"),
    ({**TERMS["co_tuning"], "calibrated_on": "tset"}, "did you mean 'test'"),
    ({**TERMS["co_tuning"], "head": "spare", "calibrated_on": "test"}, "no classification task has the head 'spare'"),
])
def test_what_a_statistic_lacks_stops_before_training(term, words, digits_file):
    config = values(digits_file)
    config["stages"]["tuned"]["objective"] = {"terms": {"digits": DIGITS, "held": term}}
    config["model"]["heads"]["spare"] = {"kind": "linear", "classes": 3}
    with pytest.raises(UserError, match=words):
        prepare(Assembly(build(ExperimentSpec, config)), "tuned")


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
