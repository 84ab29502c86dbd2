"""Descriptions of tasks: defaults by kind, outputs by classes, predictions."""

import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import bind, build
from transfer_jax.evaluation import METRICS
from transfer_jax.objectives import TERMS
from transfer_jax.tasks import TASKS, TaskSpec, example_error, head_outputs, metric_batch, predict

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]], np.float32)


def task(**values):
    return build(TaskSpec, {"head": "digits", **values}, "config.tasks.digits")


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_every_kind_fills_its_defaults_with_registered_names(kind):
    spec = task(kind=kind)
    assert spec.label == TASKS[kind].label and spec.metrics and set(spec.metrics) <= set(METRICS)
    assert callable(bind(TERMS, spec.loss, "term"))
    assert build(TaskSpec, spec.model_dump()) == spec  # as written to config.json and read back


def test_what_kinds_bring_along_replaces_nothing():
    for registry, brought in ((TERMS, "terms"), (METRICS, "measures")):
        names = [name for kind in TASKS.values() for name in getattr(kind, brought)]
        assert len(set(names)) == len(names)
        assert all(registry[name] is getattr(kind, brought)[name]
                   for kind in TASKS.values() for name in getattr(kind, brought))


def test_what_the_user_says_wins():
    spec = task(kind="classification", metrics=["accuracy"], loss={"kind": "cross_entropy", "label_smoothing": 0.1},
                label="species", class_names_from="target", outputs=None)
    assert spec.metrics == ("accuracy",) and spec.label == "species" and spec.class_names_from == "target"
    assert spec.loss.arguments == {"label_smoothing": 0.1}


@pytest.mark.parametrize("values, words", [
    ({"kind": "clasification"}, "unknown kind of task 'clasification'.*did you mean 'classification'"),
    ({}, "config.tasks.digits.kind is missing"),
    ({"kind": 3}, "config.tasks.digits.kind = 3"),
    ({"kind": "binary", "metric": ("accuracy",)}, "did you mean 'metrics'"),
    ({"kind": "binary", "outputs": 3}, "'outputs' is for regression"),
    ({"kind": "regression", "outputs": 0}, "greater than or equal to 1"),
])
def test_mistakes_are_one_clear_sentence(values, words):
    with pytest.raises(UserError, match=words):
        task(**values)


def test_head_outputs():
    names = tuple("abc")
    assert head_outputs(task(kind="classification"), names) == 3
    assert head_outputs(task(kind="segmentation"), names) == 3
    assert head_outputs(task(kind="binary"), names[:2]) == 1
    assert head_outputs(task(kind="regression")) == 1
    assert head_outputs(task(kind="regression", outputs=4)) == 4
    with pytest.raises(UserError, match="exactly 2 classes"):
        head_outputs(task(kind="binary"), names)
    with pytest.raises(UserError, match="at least 2 classes"):
        head_outputs(task(kind="classification"), ("only",))


def test_predictions():
    result = predict(task(kind="classification"), LOGITS)
    np.testing.assert_array_equal(result["prediction"], [0, 2])
    np.testing.assert_allclose(np.sum(result["probabilities"], axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(result["confidence"], np.max(result["probabilities"], axis=-1))
    pixels = predict(task(kind="segmentation"), np.tile(LOGITS[:, None, None], (1, 4, 5, 1)))
    assert pixels["prediction"].shape == (2, 4, 5) and pixels["prediction"].dtype == np.int32
    bits = predict(task(kind="binary"), np.array([[1.0], [-3.0]], np.float32))
    np.testing.assert_array_equal(bits["prediction"], [1, 0])
    np.testing.assert_allclose(bits["confidence"], 1 / (1 + np.exp([-1.0, -3.0])), rtol=1e-6)
    numbers = predict(task(kind="regression"), LOGITS)
    np.testing.assert_array_equal(numbers["prediction"], LOGITS)
    assert set(numbers) == {"prediction"}


def test_metric_batch_takes_the_labels_of_the_task():
    batch = {"image": np.zeros((2, 4, 4, 1)), "mask": np.ones((2, 4, 4), int), "label": np.zeros(2),
             "weight": np.ones(2)}
    view = metric_batch(task(kind="segmentation"), batch)
    assert view["label"] is batch["mask"] and set(view) == {"label", "weight"}
    with pytest.raises(UserError, match="needs the labels 'mask'"):
        metric_batch(task(kind="segmentation"), {"image": batch["image"]})


def test_the_error_of_an_example_leaves_out_what_has_no_class():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.integers(0, 5, (2, 3, 4))
    labels[0, 1:], labels[1] = 255, -1
    spec = task(kind="segmentation")
    own = np.take_along_axis(logits[0, :1], labels[0, :1, :, None], -1)[..., 0]
    expected = np.mean(np.log(np.exp(logits[0, :1]).sum(-1)) - own)
    np.testing.assert_allclose(example_error(spec, logits, labels), [expected, 0], rtol=1e-5)
