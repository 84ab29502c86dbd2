"""Weights of examples that a stage finds from an unlabelled target before it trains."""

import jax
import numpy as np
import pytest
import tiny_experiment
from tiny_experiment import same_leaves, single, trained

from transfer_jax.adaptation import WEIGHTS
from transfer_jax.adaptation.partial import class_shares
from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.workdir import Workdir

ULSIF = {"kind": "ulsif", "target": "test"}


def everything(assembly, name):
    stream, feed = assembly.stream(name), assembly.feed(name)
    return jax.device_get(stream.evaluation_batch({**feed, "rows": feed["rows"][0]}, 0, stream.size))


def test_weights_are_those_of_the_features_of_the_start_and_weigh_the_loss(digits_file):
    spec = single(digits_file, {"steps": 3, "importance": {"train": ULSIF}})
    found, plain = trained(spec), trained(single(digits_file, {"steps": 3}))
    assembly = Assembly(spec)
    data = {name: everything(assembly, name) for name in ("train", "test")}
    variables = {"params": unflatten({path: leaf[0] for path, leaf in found.before.trainable.items()}),
                 "batch_stats": {}}
    features = {name: found.ready.program.model.taps(variables, {"backbone": batch["image"]})[0]["pooled"]
                for name, batch in data.items()}
    seed = int(found.ready.seeds(spec.seeds)["step"][0])
    expected, _ = WEIGHTS["ulsif"](np.asarray(features["train"]), np.asarray(features["test"]), jax.random.key(seed))
    weights = np.asarray(found.constants.statistics["weights/train"][0])
    np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)
    drawn = assembly.stream("train").drawn(0, 0)
    logits = found.ready.program.model.head(variables, "digits", features["train"])[0]
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), data["train"]["label"]]
    np.testing.assert_allclose(found.metrics["digits"][0, 0], np.average(losses[drawn], weights=weights[drawn]),
                               rtol=1e-3)
    assert not np.allclose(found.metrics["digits"], plain.metrics["digits"])


def test_weights_lie_in_the_checkpoint_and_are_found_anew_if_asked(digits_file, tmp_path):
    kept = {}
    for name, more in (("once", {}), ("anew", {"renewed": True})):
        values = tiny_experiment.config(digits_file, {"stages.pretrain.importance": {"train": {**ULSIF, **more}},
                                                      "stages.pretrain.measure_every": 3})
        tiny_experiment.run(values, tmp_path / name)
        kept[name] = Workdir(tmp_path / name).checkpoints("pretrain").restore()[1]["constants"]["statistics"]
    assert not same_leaves(kept["once"], kept["anew"])


def test_classes_that_the_target_lacks_count_for_little():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0]])
    weights, metrics = class_shares(probabilities, np.array([0, 1, 2, 0]))
    np.testing.assert_allclose(weights, np.array([0.7, 0.3, 0, 0.7]) / 0.425)
    assert metrics["smallest_share"] == 0


def test_class_shares_follow_the_predictions_on_the_target(digits_file):
    spec = single(digits_file, {"steps": 1, "importance": {"train": {"kind": "class_shares", "target": "test",
                                                                     "task": "digits"}}})
    found = trained(spec)
    weights = np.asarray(found.constants.statistics["weights/train"][0])
    labels = everything(Assembly(spec), "train")["label"]
    assert all(len(set(weights[labels == label])) == 1 for label in set(labels)) and len(set(weights)) > 1


@pytest.mark.parametrize(("importance", "message"), [
    ({"train": {"kind": "ulsiv", "target": "test"}}, "'ulsif'"),
    ({"train": {"kind": "ulsif", "target": "tset"}}, "'tset'"),
    ({"test": {"kind": "ulsif", "target": "train"}}, "stream of the objective 'test'"),
    ({"train": {"kind": "ulsif", "target": "test", "widht": 1}}, "'widht'"),
    ({"train": {"kind": "class_shares", "target": "test"}}, "needs a task")])
def test_faulty_importance_is_explained(digits_file, importance, message):
    with pytest.raises(UserError, match=message):
        trained(single(digits_file, {"steps": 1, "importance": importance}))
