"""The estimator over all methods, TrAdaBoost by hand, bad input, and the published table of real features."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat
from sklearn.neighbors import KNeighborsClassifier

from transfer_jax.adaptation import MAPPINGS, WEIGHTS
from transfer_jax.adaptation.boosting import tradaboost
from transfer_jax.adaptation.estimator import METHODS, AdaptedClassifier, options_of
from transfer_jax.adaptation.normalisation import NORMALISATIONS, normalised
from transfer_jax.core.errors import UserError

OFFICE = Path(os.environ.get("TRANSFER_JAX_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
              ) / "datasets" / "office_caltech10_surf"


def blobs(n=60, seed=0, move=0.8, classes=3, d=4):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = 3 * np.random.default_rng(9).normal(size=(classes, d))
    return centers[labels] + rng.normal(size=(n, d)) + move, labels


class Constant:
    def __init__(self, answers):
        self.answers = np.asarray(answers)

    def predict(self, x):
        return self.answers[:len(x)]


def scripted(*answers):
    """A learner whose models give these answers one after the other, and the weights that it was handed."""
    seen, waiting = [], iter(answers)

    def learner(x, y, weights):
        seen.append(weights.copy())
        return Constant(next(waiting))

    return learner, seen


def test_tradaboost_by_hand():
    # Two source examples of class 0, 1 and two target examples of class 0, 1, two rounds.
    learner, seen = scripted([1, 1, 0, 0], [0, 1, 0, 1])
    found = tradaboost(np.zeros((2, 1)), np.array([0, 1]), np.zeros((2, 1)), np.array([0, 1]), learner, rounds=2)
    np.testing.assert_allclose(seen[0], 0.25)
    # Round 1 errs on source 0 and target 1: its error on the target is 1/2, so target weights stay; source 0 shrinks.
    lowered = 1 / (1 + np.sqrt(2 * np.log(2) / 2))
    expected = np.array([lowered, 1, 1, 1])
    np.testing.assert_allclose(seen[1], expected / expected.sum())
    # Round 2 errs nowhere: it counts as half an example of two, 1/4, and votes log 3. Both rounds are the second half
    # of two rounds as the paper counts (from ceil(2/2) = 1), the first without a vote.
    np.testing.assert_allclose(found.votes, [0, np.log(3)])
    np.testing.assert_allclose(found.weights, expected / expected.sum())
    assert found.predict(np.zeros((4, 1))).tolist() == [0, 1, 0, 1]


def test_tradaboost_raises_wrong_targets_and_lowers_wrong_sources():
    learner, seen = scripted([1, 1, 0, 0, 0, 1], [0] * 6, [0] * 6, [0] * 6)
    source_labels, target_labels = np.array([0, 1]), np.array([0, 0, 1, 1])
    found = tradaboost(np.zeros((2, 1)), source_labels, np.zeros((4, 1)), target_labels, learner, rounds=4)
    # One of four targets is wrong: error 1/4, odds 3.
    lowered = 1 / (1 + np.sqrt(2 * np.log(2) / 4))
    expected = np.array([lowered, 1, 1, 1, 3, 1])
    np.testing.assert_allclose(seen[1], expected / expected.sum())
    assert len(found.learners) == 3, "rounds 2 to 4 of 4"


def test_tradaboost_where_no_learner_is_better_than_chance():
    learner, _ = scripted(*[[1, 0, 1, 0]] * 5)
    found = tradaboost(np.zeros((2, 1)), np.array([0, 1]), np.zeros((2, 1)), np.array([0, 1]), learner, rounds=5)
    assert set(found.votes) == {0.0} and np.isfinite(found.weights).all()
    assert found.predict(np.zeros((4, 1))).tolist() == [1, 0, 1, 0]


def test_tradaboost_learns_to_distrust_a_source_that_lies():
    source, labels = blobs(90, 0, 0.0)
    target, truth = blobs(90, 1, 0.5)
    lies = np.where(np.arange(90) < 45, (labels + 1) % 3, labels)
    given = np.where(np.arange(90) < 30, truth, -1)
    found = AdaptedClassifier("tradaboost", "logistic").fit(source, lies, target, given)
    assert found.weights[:45].mean() < 0.5 * found.weights[45:].mean()
    plain = AdaptedClassifier("none", "logistic").fit(source, lies, target, given)
    right = [(one.predict(target)[30:] == truth[30:]).mean() for one in (found, plain)]
    assert right[0] > 0.9 and right[0] >= right[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_classifies(method):
    source, labels = blobs(60, 0, 0.0)
    target, truth = blobs(45, 1)
    names = np.array(["ape", "bee", "cat"])
    given = None if method in MAPPINGS and method != "augmentation" else np.where(np.arange(45) < 9, names[truth], "")
    classifier = "nn1" if method in MAPPINGS else "logistic"
    found = AdaptedClassifier(method, classifier).fit(source, names[labels], target, given)
    answers = found.predict(target)
    assert answers.shape == (45,) and set(answers) <= set(names) and (answers == names[truth]).mean() > 0.7
    assert found.transform(source, "source").shape[1] == found.transform(target).shape[1]
    assert (found.weights is None) == (method in MAPPINGS)
    again = AdaptedClassifier(method, classifier).fit(source, names[labels], target, given)
    np.testing.assert_array_equal(again.predict(target), answers)


def test_nearest_neighbour_without_adaptation_is_scikit_learns():
    source, labels = blobs(60)
    target, _ = blobs(40, 3, 1.5)
    expected = KNeighborsClassifier(1).fit(source, labels).predict(target)
    np.testing.assert_array_equal(AdaptedClassifier().fit(source, labels, target).predict(target), expected)


def test_weights_reach_the_classifier():
    rng = np.random.default_rng(0)
    source = rng.uniform(-3, 3, (400, 1))
    labels = (np.sin(source[:, 0]) > 0).astype(int)  # no line is right everywhere
    target = rng.normal(0, 0.4, (200, 1))
    truth = (np.sin(target[:, 0]) > 0).astype(int)
    for method in ("kmm", "rulsif"):
        found = AdaptedClassifier(method, "logistic").fit(source, labels, target)
        assert (found.predict(target) == truth).mean() > 0.9
        near = np.abs(source[:, 0]) < 0.5
        assert found.weights[near].mean() > 2 * found.weights[np.abs(source[:, 0]) > 2].mean()


def test_bad_input_is_one_sentence():
    source, labels = blobs(12)
    target, truth = blobs(9, 1)
    nan = target.copy()
    nan[4, 0] = np.inf
    cases = [((source, labels, target[:, :2], None), {}, "4 features and the target 2"),
             ((source, labels, target[:0], None), {}, "target domain is empty"),
             ((source, labels[:5], target, None), {}, "12 examples but labels of shape"),
             ((source, np.zeros(12, int), target, None), {}, "single class"),
             ((source, labels, target, truth + 7), {}, "no class of the target"),
             ((source, labels, nan, None), {}, "row 4"),
             ((source, labels, target, None), {"method": "crol"}, "did you mean 'coral'"),
             ((source, labels, target, None), {"classifier": "smv"}, "did you mean 'svm'"),
             ((source, labels, target, None), {"method": "sa", "options": {"dimension": 2}}, "'dimensions'"),
             ((source, labels, target, None), {"method": "kmm"}, "cannot weight"),
             ((source, labels, target, None), {"classifier": "svm", "c": 0.0}, "above 0"),
             ((source, labels, target, None), {"method": "tradaboost", "classifier": "svm"}, "labelled examples")]
    for arguments, settings, message in cases:
        with pytest.raises(UserError, match=message):
            AdaptedClassifier(**settings).fit(*arguments)
    found = AdaptedClassifier().fit(source, labels, target)
    with pytest.raises(UserError, match="fitted to 4"):
        found.predict(target[:, :3])
    with pytest.raises(UserError, match="unknown domain"):
        found.predict(target, "traget")


def test_a_target_class_that_the_source_has_not_is_left_out_of_training():
    source, labels = blobs(30)
    target, truth = blobs(30, 1)
    found = AdaptedClassifier().fit(source, labels, target, np.where(truth == 2, 9, truth))
    assert 9 not in found.predict(target)


@pytest.mark.parametrize("step", NORMALISATIONS)
def test_normalisation(step):
    rng = np.random.default_rng(0)
    source, target = rng.uniform(0, 5, (8, 3)), rng.uniform(1, 9, (6, 3))
    source[:, 1] = target[:, 1] = 2.0
    x, y = normalised(source, target, (step,))
    assert np.isfinite(x).all() and np.isfinite(y).all()
    both = np.concatenate([x, y])
    held = {"row-sum": lambda: both.sum(1), "unit": lambda: np.linalg.norm(both, axis=1)}
    if step in held:
        np.testing.assert_allclose(held[step](), 1)
    for by, name in ((both, "zscore"), (x, "zscore-source"), (x, "zscore-per-domain"), (y, "zscore-per-domain")):
        if step == name:
            np.testing.assert_allclose(by.mean(0), 0, atol=1e-12)
            np.testing.assert_allclose(by.std(0), [1, 0, 1], atol=1e-12)
    with pytest.raises(UserError, match="did you mean 'zscore'"):
        normalised(source, target, ("zscroe",))


def test_options_are_those_of_the_functions():
    assert options_of("sa") == {"dimensions": 20} and options_of("tradaboost") == {"rounds": 20}
    assert set(METHODS) == {*MAPPINGS, *WEIGHTS, "tradaboost"}


@pytest.mark.skipif(not OFFICE.is_dir(), reason=f"the SURF features of Office-Caltech10 are absent ({OFFICE}); set "
                                                "TRANSFER_JAX_DATA to the folder that holds datasets/")
def test_published_accuracies_of_webcam_and_dslr():
    """Long et al. (2013), table 3, as quoted in jindongwang/transferlearning data/benchmark.md; two decimals."""
    found = {name: loadmat(OFFICE / f"{name}_SURF_L10.mat") for name in ("webcam", "dslr")}
    x = {name: file["fts"].astype(float) for name, file in found.items()}
    y = {name: file["labels"].ravel() for name, file in found.items()}
    for source, target, published in (("webcam", "dslr", (59.24, 77.07, 80.89, 87.26)),
                                      ("dslr", "webcam", (63.39, 75.93, 75.59, 86.10))):
        x_s, x_t = normalised(x[source], x[target], ("row-sum", "zscore-per-domain"))
        for (method, dimensions), accuracy in zip((("none", None), ("pca", 100), ("gfk", 10), ("tca", 100)), published,
                                                  strict=True):
            options = {} if dimensions is None else {"dimensions": dimensions}
            answers = AdaptedClassifier(method, options=options).fit(x_s, y[source], x_t).predict(x_t)
            assert 100 * (answers == y[target]).mean() == pytest.approx(accuracy, abs=0.006), method
