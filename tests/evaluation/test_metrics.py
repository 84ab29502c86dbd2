"""Streaming metrics against scikit-learn on ragged, padded batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation import METRICS
from transfer_jax.evaluation.calibration import fit_temperature
from transfer_jax.tasks import TASK_METRICS
from transfer_jax.tasks.metric import Metric, accumulate, joined_count, split_count

RNG = np.random.default_rng(0)
K = 7
LOGITS = RNG.normal(0, 2, (53, K)).astype(np.float32)
LABELS = np.where(RNG.random(53) < 0.5, LOGITS.argmax(1), RNG.integers(0, K, 53)).astype(np.int32)
LABELS[LABELS == K - 1] = 0  # a class without examples
PROBS = np.exp(LOGITS.astype(np.float64))
PROBS /= PROBS.sum(1, keepdims=True)
PREDICTED = LOGITS.argmax(1)
PIXELS = RNG.normal(0, 2, (11, 5, 4, K)).astype(np.float32)
MASKS = np.where(RNG.random((11, 5, 4)) < 0.6, PIXELS.argmax(-1), RNG.integers(0, K, (11, 5, 4))).astype(np.int32)
ERROR_METRICS = ("mean_absolute_error", "mean_squared_error")
SUMMED = sorted(name for name, metric in METRICS.items() if isinstance(metric, Metric))
# What a kind of task brings along takes other outputs than class scores, and is tested with it.
CLASS_METRICS = tuple(name for name in SUMMED if name not in (*ERROR_METRICS, *TASK_METRICS))


@functools.partial(jax.jit, static_argnums=0)
def update(names, states, outputs, batch):
    return {name: METRICS[name].update(states[name], outputs, batch) for name in names}


def stream_all(names, outputs, labels, batch_size, classes=K, padding=0):
    """The metrics over the rows in batches of `batch_size`, the last one padded with `padding` of weight 0."""
    states = {name: METRICS[name].init(classes) for name in names}
    for start in range(0, len(labels), batch_size):
        out, lab = outputs[start:start + batch_size], labels[start:start + batch_size]
        missing = batch_size - len(lab)
        batch = {"label": np.concatenate([lab, np.full((missing, *lab.shape[1:]), padding, lab.dtype)]),
                 "weight": np.r_[np.ones(len(lab), np.float32), np.zeros(missing, np.float32)]}
        states = update(names, states, np.concatenate([out, np.full((missing, *out.shape[1:]), 9, out.dtype)]), batch)
    return {name: METRICS[name].compute(state) for name, state in states.items()}


def stream(name, *arguments, **options):
    return stream_all((name,), *arguments, **options)[name]


def test_accuracies_equal_scikit_learn():
    assert stream("accuracy", LOGITS, LABELS, 16)["accuracy"] == sk.accuracy_score(LABELS, PREDICTED)
    expected = sk.top_k_accuracy_score(LABELS, LOGITS, k=5, labels=np.arange(K))
    assert stream("top5_accuracy", LOGITS, LABELS, 16)["top5_accuracy"] == expected


def test_confusion_and_per_class_accuracy_equal_scikit_learn():
    matrix = stream("confusion_matrix", LOGITS, LABELS, 16)["confusion_matrix"]
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(LABELS, PREDICTED, labels=np.arange(K)))
    result = stream("per_class_accuracy", LOGITS, LABELS, 16)
    recall = sk.recall_score(LABELS, PREDICTED, labels=np.unique(LABELS), average=None)
    np.testing.assert_allclose(result["per_class_accuracy"][np.unique(LABELS)], recall)
    assert np.isnan(result["per_class_accuracy"][K - 1])
    np.testing.assert_allclose(result["mean_class_accuracy"], recall.mean())


def test_cross_entropy_equals_scikit_learn():
    expected = sk.log_loss(LABELS, PROBS, labels=np.arange(K))
    np.testing.assert_allclose(stream("cross_entropy", LOGITS, LABELS, 16)["cross_entropy"], expected, rtol=1e-5)


def test_pixel_metrics_equal_scikit_learn_and_leave_void_out():
    masks = np.where(RNG.random(MASKS.shape) < 0.2, 255, MASKS).astype(np.int32)
    known = masks != 255
    truth, predicted = masks[known], PIXELS.argmax(-1)[known]
    np.testing.assert_allclose(stream("mean_iou", PIXELS, masks, 4)["mean_iou"],
                               sk.jaccard_score(truth, predicted, average="macro"))
    assert stream("pixel_accuracy", PIXELS, masks, 4)["pixel_accuracy"] == sk.accuracy_score(truth, predicted)
    np.testing.assert_array_equal(stream("confusion_matrix", PIXELS, masks, 4)["confusion_matrix"],
                                  sk.confusion_matrix(truth, predicted))
    log_probs = np.asarray(jax.nn.log_softmax(PIXELS))[known]
    np.testing.assert_allclose(stream("cross_entropy", PIXELS, masks, 4)["cross_entropy"],
                               -log_probs[np.arange(len(truth)), truth].mean(), rtol=1e-5)


def test_mean_iou_leaves_out_classes_absent_in_both_but_not_those_only_predicted():
    outputs = np.eye(4, dtype=np.float32)[[[[0, 1], [1, 2]]]]
    result = stream("mean_iou", outputs, np.array([[[0, 1], [1, 1]]]), 1, classes=4)
    np.testing.assert_array_equal(result["per_class_iou"], [1, 2 / 3, 0, np.nan])
    np.testing.assert_allclose(result["mean_iou"], 5 / 9)


def test_calibration_error_equals_its_definition():
    result = stream("calibration_error", LOGITS, LABELS, 16)
    confidence, error = PROBS.max(1), 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            gap = abs((PREDICTED == LABELS)[inside].mean() - confidence[inside].mean())
            error += inside.mean() * gap
    np.testing.assert_allclose(result["calibration_error"], error, rtol=1e-5)
    assert result["bin_count"].sum() == 53 and result["bin_count"].dtype == np.int64


def test_calibration_of_certain_and_of_calibrated_predictions():
    certain = 100 * np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    np.testing.assert_allclose(stream("calibration_error", certain, np.array([0, 1, 2, 0]), 4)["calibration_error"], 0)
    np.testing.assert_allclose(stream("calibration_error", certain, np.array([1, 2, 0, 1]), 4)["calibration_error"], 1)
    constant = np.log(np.tile([0.75, 0.25], (8, 1))).astype(np.float32)
    labels = np.array([0, 0, 0, 1] * 2)
    np.testing.assert_allclose(stream("calibration_error", constant, labels, 3, 2)["calibration_error"], 0, atol=1e-6)


def test_error_metrics_equal_scikit_learn():
    values = RNG.normal(size=(53, K)).astype(np.float32)
    for name, function in (("mean_squared_error", sk.mean_squared_error),
                           ("mean_absolute_error", sk.mean_absolute_error)):
        np.testing.assert_allclose(stream(name, LOGITS, values, 8)[name], function(values, LOGITS), rtol=1e-5)
        np.testing.assert_allclose(stream(name, LOGITS[:, :1], values[:, 0], 8)[name],
                                   function(values[:, 0], LOGITS[:, 0]), rtol=1e-5)


def same(left, right):
    for name, results in right.items():
        assert left[name].keys() == results.keys()
        for key, value in results.items():
            np.testing.assert_allclose(left[name][key], value, rtol=1e-5, err_msg=f"{name} {key}")


@pytest.mark.parametrize("names, outputs, labels", [
    (CLASS_METRICS, LOGITS, LABELS), ((*CLASS_METRICS, "boundary_f1"), PIXELS, MASKS),
    (("ranks",), LOGITS[:, :-1], LABELS)], ids=["classes", "pixels", "ranks"])
def test_batch_size_order_and_padding_do_not_matter(names, outputs, labels):
    streamed = functools.partial(stream_all, names, classes=outputs.shape[-1])
    whole = streamed(outputs, labels, len(labels))
    same(streamed(outputs, labels, 8, padding=3), whole)
    same(streamed(outputs, labels, 8, padding=-1), whole)
    order = RNG.permutation(len(labels))
    same(streamed(outputs[order], labels[order], 8), whole)


def test_a_single_logit_stands_for_two_classes():
    logit, bits = LOGITS[:, :1], (LABELS % 2).astype(np.int32)
    pair = np.concatenate([0 * logit, logit], axis=1)
    expected = stream_all(CLASS_METRICS, pair, bits, 16, classes=2)
    same(stream_all(CLASS_METRICS, logit, bits, 16, classes=2), expected)
    same(stream_all(CLASS_METRICS, logit[:, 0], bits, 16, classes=2), expected)


@pytest.mark.parametrize("names", [CLASS_METRICS, ERROR_METRICS])
def test_states_add_up_under_jit_scan_and_vmap_over_members(names):
    labels = LABELS[:48] if names is CLASS_METRICS else RNG.normal(size=(48, K)).astype(np.float32)
    outputs = RNG.normal(size=(3, 4, 12, K)).astype(np.float32)

    def member(outputs):
        def step(states, inputs):
            return update(names, states, inputs[0], {"label": inputs[1]}), None
        start = {name: METRICS[name].init(K) for name in names}
        return jax.lax.scan(step, start, (outputs, labels.reshape(4, 12, *labels.shape[1:])))[0]

    states = jax.jit(jax.vmap(member))(outputs)
    assert all(leaf.dtype in (jnp.int32, jnp.float32) for leaf in jax.tree.leaves(states))
    for seed in range(3):
        one = jax.tree.map(lambda x, s=seed: x[s], states)
        same({name: METRICS[name].compute(one[name]) for name in names},
             stream_all(names, outputs[seed].reshape(48, K), labels, 16))


@pytest.mark.parametrize("name", SUMMED)
def test_no_example_gives_nan_not_a_number(name):
    result = METRICS[name].compute(METRICS[name].init(K))
    assert set(METRICS[name].better) <= set(result) and set(METRICS[name].better.values()) <= {"max", "min"}
    assert all(np.isnan(result[key]) for key in METRICS[name].better)


def test_counts_beyond_int32_stay_exact():
    metric = METRICS["pixel_accuracy"]
    big = np.int32(2**31 - 7)
    part = {"sum": split_count(jnp.int32(big - 1)), "count": split_count(jnp.int32(big))}
    on_device = jax.lax.fori_loop(0, 5000, lambda _, s: jax.tree.map(jnp.add, s, part), metric.init(2))
    assert joined_count(on_device["count"]) == 5000 * int(big)
    assert joined_count(on_device["sum"]) == 5000 * (int(big) - 1)
    total = None
    for _ in range(50):
        total = accumulate(total, on_device)
    assert joined_count(total["count"]) == 250_000 * int(big)


def test_host_accumulation_keeps_small_terms():
    state = {"sum": np.float32(1e-3), "count": split_count(jnp.int32(1))}
    total = accumulate({"sum": np.float64(1e6), "count": split_count(np.int64(10**6))}, state)
    assert total["sum"] > 1e6 and joined_count(total["count"]) == 10**6 + 1


def test_a_constant_or_broken_output_earns_no_more_than_its_due():
    constant = np.zeros((70, K), np.float32)
    labels = np.repeat(np.arange(K), 10)
    np.testing.assert_allclose(stream("accuracy", constant, labels, 16)["accuracy"], 1 / K)
    np.testing.assert_allclose(stream("top5_accuracy", constant, labels, 16)["top5_accuracy"], 5 / K)
    assert stream("accuracy", constant * np.nan, labels, 16)["accuracy"] == 0
    assert np.isnan(stream("cross_entropy", constant * np.nan, labels, 16)["cross_entropy"])
    assert stream("accuracy", LOGITS, np.full(53, K), 16)["accuracy"] == 0
    assert stream("top5_accuracy", LOGITS[:, :3], LABELS % 3, 16)["top5_accuracy"] == 1


@pytest.mark.parametrize("name", ["accuracy", "mean_squared_error"])
def test_misfits_are_one_clear_sentence(name):
    with pytest.raises(UserError, match="check the task's head and label"):
        METRICS[name].measure(LOGITS, {"label": LABELS[:5]})


def test_the_temperature_has_the_highest_likelihood():
    def loss(log_temperature):
        return -log_softmax(LOGITS / np.exp(log_temperature), axis=1)[np.arange(53), LABELS].mean()

    expected = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10}).x)
    assert fit_temperature(LOGITS, LABELS) == pytest.approx(expected, rel=1e-5)
    assert fit_temperature(7 * LOGITS, LABELS) == pytest.approx(7 * expected, rel=1e-5)
    for labels, words in ((LOGITS.argmax(1), "all right"), (LOGITS.argmin(1), "no better than chance")):
        with pytest.raises(UserError, match=words):
            fit_temperature(LOGITS, labels)
