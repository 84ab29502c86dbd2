"""Closed forms over a target stream: statistics of its own, templates, and labels of the nearest centroid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny_experiment
from tiny_experiment import same_leaves

from transfer_jax.adaptation.population import population
from transfer_jax.adaptation.templates import t3a_templates
from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.objectives.statistics import cluster_labels

RNG = np.random.default_rng(5)
NORM = {"model.backbones.backbone.norm": "batch"}


def test_population_statistics_are_those_of_all_examples_at_once():
    x = RNG.normal(2, 3, (12, 5, 4)).astype(np.float32)
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x)
    parts = [module.apply(variables, part, mutable=["moments"])[1]["moments"] for part in (x[:4], x[4:8], x[8:])]
    found = population(variables["batch_stats"], parts, 4)
    np.testing.assert_allclose(found["mean"], x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found["var"], x.var((0, 1)), rtol=1e-5)
    half = population(variables["batch_stats"], parts, 4, prior=12)
    np.testing.assert_allclose(half["mean"], x.mean((0, 1)) / 2, rtol=1e-5)
    np.testing.assert_allclose(half["var"], (1 + x.var((0, 1))) / 2, rtol=1e-5)


def test_a_layer_that_is_measured_normalises_by_its_batch_and_moves_nothing():
    x = jnp.asarray(RNG.normal(2, 3, (8, 4)), jnp.float32)
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x)
    y, written = module.apply(variables, x, mutable=["moments"])
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    assert set(written) == {"moments"}


def templates_by_hand(features, logits, kernel, supports, counted):
    """T3A from its definition, one class and one support after the other."""
    candidates = [(kernel[:, k], kernel.T @ kernel[:, k], k) for k in range(kernel.shape[1])]
    candidates += [(f, z, int(np.argmax(z))) for f, z, c in zip(features, logits, counted, strict=True) if c]
    columns = []
    for k in range(kernel.shape[1]):
        mine = [(scipy.stats.entropy(scipy.special.softmax(z)), f) for f, z, label in candidates if label == k]
        mine = sorted(mine, key=lambda pair: pair[0])[:supports]
        columns.append(np.mean([f / np.linalg.norm(f) for _, f in mine], axis=0))
    return np.stack(columns, 1)


@pytest.mark.parametrize("shape", [(1, 2, 2), (7, 3, 4), (40, 5, 3), (25, 9, 6)])
@pytest.mark.parametrize("supports", [1, 3, 100])
def test_templates_follow_their_definition(shape, supports):
    n, d, k = shape
    features, logits, kernel = RNG.normal(size=(n, d)), 2 * RNG.normal(size=(n, k)), RNG.normal(size=(d, k))
    counted = RNG.random(n) > 0.2
    found = t3a_templates(*(jnp.asarray(a, jnp.float32) for a in (features, logits, kernel, counted)), supports)
    np.testing.assert_allclose(found, templates_by_hand(features, logits, kernel, supports, counted), atol=1e-5)


def labels_by_hand(features, shares, rounds):
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    for _ in range(rounds + 1):
        present = [k for k in range(shares.shape[1]) if shares[:, k].sum() > 0]
        centroids = np.stack([shares[:, k] @ features / shares[:, k].sum() for k in present])
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        labels = np.asarray(present)[np.argmax(features @ centroids.T, 1)]
        shares = np.eye(shares.shape[1])[labels]
    return labels


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("shape", [(4, 2, 3), (30, 5, 4), (50, 3, 9)])
def test_cluster_labels_follow_their_definition(shape, rounds):
    n, d, k = shape
    features = RNG.normal(size=(n, d)) + 3 * RNG.integers(0, 2, (n, 1))
    shares = scipy.special.softmax(3 * RNG.normal(size=(n, k)), axis=1)
    found = cluster_labels(rounds=rounds).finish((jnp.asarray(features, jnp.float32), jnp.asarray(shares, jnp.float32)),
                                                 jnp.ones(n))
    assert np.asarray(found).tolist() == labels_by_hand(features, shares, rounds).tolist()


def test_an_example_that_cannot_be_read_moves_no_centroid():
    features, shares = RNG.normal(size=(20, 3)), scipy.special.softmax(RNG.normal(size=(20, 3)), axis=1)
    weights = (np.arange(20) < 15).astype(np.float32)
    rows = (jnp.asarray(features, jnp.float32), jnp.asarray(shares, jnp.float32))
    found = cluster_labels(rounds=2).finish(rows, jnp.asarray(weights))
    assert np.asarray(found)[:15].tolist() == labels_by_hand(features[:15], shares[:15], 2).tolist()


def values(digits_file, **adapted):
    found = tiny_experiment.config(digits_file, NORM)
    first = found["stages"]["pretrain"]
    stage = {"init": "pretrain", "evaluate": {"test": "digits"}, **adapted}
    return {**found, "stages": {"pretrain": first, "adapted": stage}}


def everything(spec, name):
    assembly = Assembly(spec)
    stream, feed = assembly.stream(name), assembly.feed(name)
    return assembly, jax.device_get(stream.evaluation_batch({**feed, "rows": feed["rows"][0]}, 0, stream.size))


def test_a_stage_takes_the_statistics_of_its_target(digits_file, tmp_path):
    refit = ({"kind": "norm_statistics", "stream": "test"},)
    runner = tiny_experiment.run({**values(digits_file, refit=refit), "eval_batch_size": 4096}, tmp_path / "run")
    before, after = (runner.result(name, "last") for name in ("pretrain", "adapted"))
    assert same_leaves(before[0], after[0])
    assembly, batch = everything(runner.spec, "test")
    variables = {"params": unflatten({path: leaf[0] for path, leaf in before[0].items()}),
                 "batch_stats": jax.tree.map(lambda leaf: leaf[0], before[1])}
    expected = assembly.model.moments(variables, {"backbone": jnp.asarray(batch["image"])})
    for path, leaf in flatten(expected).items():
        np.testing.assert_allclose(flatten(after[1])[path][0], leaf, rtol=1e-4, atol=1e-6)
    record = Workdir(tmp_path / "run").record("adapted")
    assert record["info"]["steps"] == 0 if "info" in record else record["steps"] == 0


def test_a_stage_takes_templates_of_its_target(digits_file, tmp_path):
    refit = ({"kind": "prototypes", "stream": "test", "head": "digits", "supports": 5},)
    runner = tiny_experiment.run(values(digits_file, refit=refit), tmp_path / "run")
    before, after = (runner.result(name, "last")[0] for name in ("pretrain", "adapted"))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {"heads/digits/dense/kernel", "heads/digits/dense/bias"}
    assert (np.asarray(after["heads/digits/dense/bias"]) == 0).all()


SHOT = {"terms": {"entropy": {"kind": "entropy", "head": "digits", "stream": "test"},
                  "clusters": {"kind": "cluster_cross_entropy", "head": "digits", "stream": "test", "weight": 0.3}}}


def test_labels_are_found_anew_and_a_stopped_stage_goes_on_with_them(digits_file, tmp_path):
    adapted = dict(objective=SHOT, steps=6, lr=0.05, measure_every=2,
                   partition=(("heads/.*", "frozen"), (".*", "body")), groups={"body": {}})
    whole = tiny_experiment.run(values(digits_file, **adapted), tmp_path / "whole").result("adapted", "last")[0]
    never = tiny_experiment.run(values(digits_file, **{**adapted, "measure_every": 0}), tmp_path / "never")
    kept = [Workdir(tmp_path / name).checkpoints("adapted").restore()[1]["constants"]["statistics"]
            ["clusters/cluster_labels"] for name in ("whole", "never")]
    assert not np.array_equal(*kept)
    assert not same_leaves(whole, never.result("adapted", "last")[0])
    part = tmp_path / "part"
    run = tiny_experiment.run(values(digits_file, **adapted), part)
    folder = part / "checkpoints" / "adapted"
    for step in folder.iterdir():
        if step.name == "6":
            for path in sorted(step.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            step.rmdir()
    (part / "stages" / "adapted.json").unlink()
    run = tiny_experiment.run(values(digits_file, **adapted), part)
    assert same_leaves(run.result("adapted", "last")[0], whole)


@pytest.mark.parametrize(("refit", "message"), [
    ({"kind": "norm_statistic", "stream": "test"}, "norm_statistics"),
    ({"kind": "norm_statistics", "stream": "tset"}, "'tset'"),
    ({"kind": "norm_statistics"}, "stream"),
    ({"kind": "norm_statistics", "stream": "test", "prior": -1.0}, "negative"),
    ({"kind": "prototypes", "stream": "test", "head": "digit"}, "'digit'"),
    ({"kind": "prototypes", "stream": "test", "head": "digits", "supports": 0}, "supports >= 1")])
def test_faulty_refits_are_explained(digits_file, tmp_path, refit, message):
    with pytest.raises(UserError, match=message):
        tiny_experiment.run(values(digits_file, refit=(refit,)), tmp_path / "run")
