"""Classifiers on features against scikit-learn and brute force; how their settings are chosen; few-shot episodes."""

import jax
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import stdtrit
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.svm import SVC

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation import classifiers, logistic, probes
from transfer_jax.evaluation.few_shot import FEW_SHOT, episode, few_shot


def drawn(n=90, dimensions=8, classes=3, seed=0, apart=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    means = np.random.default_rng(99).normal(size=(classes, dimensions))
    return rng.normal(size=(n, dimensions)) + apart * means[labels], labels


@pytest.mark.parametrize(("dimensions", "classes"), [(8, 3), (6, 2), (130, 4)])
def test_ridge_is_that_of_scikit_learn(dimensions, classes):
    x, y = drawn(90, dimensions, classes)
    query, _ = drawn(40, dimensions, classes, seed=1)
    votes = classifiers.ridge(x, y, classes, (1e-3, 0.1, 10.0), query)
    for vote, penalty in zip(votes, (1e-3, 0.1, 10.0), strict=True):
        theirs = RidgeClassifier(alpha=penalty * len(x)).fit(x, y).decision_function(query)
        np.testing.assert_allclose(vote if classes > 2 else vote[:, 1], theirs, atol=1e-8)


@pytest.mark.parametrize(("dimensions", "classes"), [(8, 3), (6, 2), (130, 4)])
def test_discriminant_is_that_of_scikit_learn(dimensions, classes):
    x, y = drawn(90, dimensions, classes)
    query, _ = drawn(40, dimensions, classes, seed=1)
    for vote, shrinkage in zip(classifiers.discriminant(x, y, classes, (0.9, 0.01), query), (0.9, 0.01), strict=True):
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y).decision_function(query)
        ours = vote if classes > 2 else vote[:, 1] - vote[:, 0]
        np.testing.assert_allclose(ours - ours.mean(-1, keepdims=True), theirs - theirs.mean(-1, keepdims=True),
                                   atol=1e-7)


def test_neighbours_are_those_of_brute_force():
    x, y = drawn(50)
    query, _ = drawn(30, seed=1)
    votes = classifiers.nearest_neighbours(x, y, 4, (99, 7, 1), query, block=8)
    for place, k in enumerate((99, 7, 1)):
        for number, q in enumerate(query):
            cosines = [q @ row / np.sqrt((q @ q) * (row @ row)) for row in x]
            expected = np.zeros(4)
            for row in sorted(range(50), key=lambda row: -cosines[row])[:k]:
                expected[y[row]] += 1 + cosines[row]
            np.testing.assert_allclose(votes[place, number], expected, atol=1e-12)


def test_nearest_mean_by_hand():
    x, y = drawn(50)
    votes = classifiers.nearest_mean(x, y, 4, (None,), x)[0]
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([rows[y == c].mean(0) for c in range(3)])
    assert votes[:, :3].argmax(1).tolist() == ((rows[:, None] - means) ** 2).sum(-1).argmin(1).tolist()
    assert (votes[:, 3] == -np.inf).all(), "a class that was not seen is never the answer"


def test_the_path_chooses_what_a_loop_over_scikit_learn_chooses():
    x, y = drawn(150, 40, 3, apart=0.3)
    query, truth = drawn(400, 40, 3, seed=1, apart=0.3)
    with jax.enable_x64(True):
        outer, inner = probes.plan(np.concatenate([y, truth]), 150, True, None, 5, 0)
        x = probes.standardised(np.concatenate([x, query]), 150)
        y = np.concatenate([y, truth])
        (chosen,), (accuracy,), (votes,) = probes.answers("logistic", x, y, 3, outer, inner)
    scores = {}
    for penalty in probes.PROBES["logistic"].settings:
        fits = [LogisticRegression(C=1 / (penalty * len(fit)), solver="newton-cholesky").fit(x[fit], y[fit])
                .score(x[held], y[held]) for fit, held in inner[0]]
        scores[penalty] = np.mean(fits)
    best = max(scores, key=lambda penalty: round(scores[penalty], 12))  # the first of equals, as ours
    assert len(set(np.round(list(scores.values()), 6))) > 3, "the choice matters"
    assert chosen == best and accuracy == pytest.approx(scores[best])
    model = LogisticRegression(C=1 / (best * 150), solver="newton-cholesky").fit(x[:150], y[:150])
    assert votes.argmax(1).tolist() == model.predict(x[150:]).tolist()


def test_the_table_of_a_test_set():
    train, test = drawn(120), drawn(200, seed=1)
    rows = {row.method: row for row in probes.table(train, test)}
    assert list(rows) == list(probes.PROBES)
    for row in rows.values():
        assert 0.6 < row.accuracy <= 1 and row.low < row.accuracy < row.high and row.count == 200
    svm = SVC(C=float(rows["rbf_svm"].setting)).fit(probes.standardised(np.concatenate([train[0], test[0]]), 120)[:120],
                                                    train[1])
    scaled = probes.standardised(np.concatenate([train[0], test[0]]), 120)[120:]
    assert rows["rbf_svm"].accuracy == svm.score(scaled, test[1])
    assert rows["nearest_mean"].validation is None and rows["ridge"].validation > 0.5
    assert probes.table(train, test, methods=("ridge",)) == [rows["ridge"]], "the same again"


def test_validation_rows_choose_and_are_then_fitted():
    train, held, test = drawn(60), drawn(60, seed=1), drawn(60, seed=2)
    row, = probes.table(train, test, held, methods=("ridge",))
    scaled = probes.standardised(np.concatenate([train[0], held[0], test[0]]), 120)
    votes = classifiers.ridge(scaled[:60], train[1], 3, probes.PROBES["ridge"].settings, scaled[60:120])
    right = (votes.argmax(-1) == held[1]).mean(1)
    assert row.validation == right.max() and float(row.setting) == probes.PROBES["ridge"].settings[right.argmax()]
    both = classifiers.ridge(scaled[:120], np.concatenate([train[1], held[1]]), 3, (float(row.setting),), scaled[120:])
    assert row.accuracy == (both[0].argmax(1) == test[1]).mean()


def test_cross_validation_answers_every_row_once():
    x, y = drawn(64, classes=4)
    outer, inner = probes.plan(y, 64, False, None, 4, 0)
    assert sorted(np.concatenate([split.answer for split in outer]).tolist()) == list(range(64))
    for split, choosing in zip(outer, inner, strict=True):
        assert not set(split.fit) & set(split.answer) and np.bincount(y[split.answer]).tolist() == [4] * 4
        for within in choosing:
            assert set(within.fit) | set(within.answer) == set(split.fit), "answered rows choose nothing"
    rows = probes.table((x, y), methods=("logistic", "knn"), folds=4)
    assert [row.count for row in rows] == [64, 64] and all(row.accuracy > 0.5 for row in rows)


def test_labels_without_a_signal_give_chance():
    x, _ = drawn(300, 5)
    y = np.random.default_rng(5).integers(2, size=300)
    for row in probes.table((x, y), methods=("ridge", "lda", "knn", "nearest_mean")):
        assert row.low < 0.56 and row.high > 0.44


def test_wilsons_interval_solves_its_equation():
    for right, count in ((0, 10), (7, 10), (499, 500), (10, 10)):
        low, high = probes.wilson(right, count)
        for end, bracket in ((low, (1e-9, right / count - 1e-6)), (high, (right / count + 1e-6, 1 - 1e-9))):
            if 1e-9 < end < 1 - 1e-9:
                root = brentq(lambda p, r=right, n=count: (r / n - p) ** 2 - 1.959964 ** 2 * p * (1 - p) / n, *bracket)
                assert end == pytest.approx(root, abs=1e-6)


def test_episodes_are_reproducible_and_share_nothing():
    _, y = drawn(70, classes=3)
    for number in range(20):
        one, same = episode(y, 5, 0, number), episode(y, 5, 0, number)
        assert one.support.tolist() == same.support.tolist() and one.query.tolist() == same.query.tolist()
        assert not set(one.support) & set(one.query)
        assert np.bincount(y[one.support]).tolist() == [5, 5, 5] and np.bincount(y[one.query]).tolist() == [15, 15, 15]
    assert episode(y, 5, 0, 0).support.tolist() != episode(y, 5, 0, 1).support.tolist()
    assert episode(y, 5, 0, 0).support.tolist() != episode(y, 5, 1, 0).support.tolist()


def test_more_shots_help_and_impossible_ones_are_left_out():
    train, test = drawn(60), drawn(90, seed=1)
    mean = ("nearest_mean",)
    rows = few_shot(train, shots=(1, 5, 10, 20), episodes=40, learners=mean)
    assert [row.method for row in rows] == [f"nearest_mean, {k}" for k in ("1 shot", "5 shots", "10 shots")], \
        "20 of 20 leave none to ask about"
    assert rows[0].high < rows[2].low and all(row.count == 40 for row in rows)
    assert rows == few_shot(train, shots=(1, 5, 10), episodes=40, learners=mean)
    assert [row.method for row in few_shot(train, test, (20, 21), 3, learners=mean)] == ["nearest_mean, 20 shots"]


@pytest.mark.parametrize("classes", [2, 4])
def test_every_few_shot_classifier_answers_as_scikit_learn_does(classes):
    x, y = drawn(88, 12, classes, apart=0.4)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = 2 * y + 1  # numbers of classes without an example lie between
    models = {"nearest_mean": NearestCentroid(), "knn": KNeighborsClassifier(1), "ridge": RidgeClassifier(alpha=1.0),
              "logistic": LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-10)}
    assert list(models) == list(FEW_SHOT)
    with jax.enable_x64(True):
        rows = few_shot((5 * x, y), shots=(3,), episodes=6)
    right = {name: np.array([model.fit(x[one.support], y[one.support]).score(x[one.query], y[one.query])
                             for one in (episode(y, 3, 0, number) for number in range(6))])
             for name, model in models.items()}
    for row, (name, scores) in zip(rows, right.items(), strict=True):
        half = stdtrit(5, 0.975) * scores.std(ddof=1) / np.sqrt(6)
        assert row.method == f"{name}, 3 shots" and row.accuracy == pytest.approx(scores.mean())
        assert (row.low, row.high) == pytest.approx((scores.mean() - half, min(scores.mean() + half, 1)))
    assert len({row.accuracy for row in rows}) > 1, "they differ"


def test_logistic_episodes_are_the_optima_of_scikit_learn_also_in_parts(monkeypatch):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 9, 20)), np.repeat(np.arange(3), 3)
    with jax.enable_x64(True):
        weights, bias = logistic.logistic_episodes(x, y, 3, 0.05, tolerance=1e-9)
        monkeypatch.setattr(logistic, "EPISODE_BYTES", 2 * 8 * (9 * 20 + 24 * 9 * 3))  # two at once
        parts = logistic.logistic_episodes(x, y, 3, 0.05, tolerance=1e-9)
    for ours, theirs in zip((weights, bias), parts, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-8)
    for place, one in enumerate(x):
        model = LogisticRegression(C=1 / (0.05 * 9), solver="newton-cholesky", tol=1e-12).fit(one, y)
        np.testing.assert_allclose(weights[place].T, model.coef_, atol=1e-5)
        np.testing.assert_allclose(bias[place] - bias[place].mean(), model.intercept_ - model.intercept_.mean(),
                                   atol=1e-5)


def test_large_episodes_leave_out_what_is_costly(monkeypatch):
    x, y = drawn(40, classes=4)
    monkeypatch.setattr("transfer_jax.evaluation.few_shot.MANY", 15)
    rows = few_shot((x, y), shots=(2, 5), episodes=2)
    assert [row.method for row in rows if "5 shots" in row.method] == ["nearest_mean, 5 shots", "knn, 5 shots"]
    assert len(rows) == 6 and few_shot((x, y), shots=(5,), episodes=2, learners=("ridge",))[0].count == 2


def test_mistakes_are_sentences():
    x, y = drawn(20)
    for call, message in [(lambda: probes.table((x, y), methods=("lgistic",)), "did you mean 'logistic'"),
                          (lambda: probes.table((x, np.zeros(20, int))), "two classes"),
                          (lambda: probes.table((x, y), folds=1), "2 or more"),
                          (lambda: few_shot((x, y), episodes=1), "2 episodes"),
                          (lambda: few_shot((x, y), learners=("logstic",)), "did you mean 'logistic'"),
                          (lambda: few_shot((x, y), shots=(0,)), "1 shot or more"),
                          (lambda: classifiers.discriminant(np.ones((4, 2)), np.arange(4) % 2, 2, (0.1,), x), "vary")]:
        with pytest.raises(UserError, match=message):
            call()
