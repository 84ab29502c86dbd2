"""Validators against their definitions in float64, on known shifts, and on bad input; distance and ratio of domains."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation import validators
from transfer_jax.evaluation.domains import DomainClassifier, a_distance, classify_domains
from transfer_jax.evaluation.validators import VALIDATORS, Evidence

SEEDS = range(24)


def shapes(seed):
    """A number of examples and of classes, of any size."""
    draw = np.random.default_rng(seed)
    return int(draw.integers(2, 70)), int(draw.integers(2, 12)), draw


def softmax(logits):
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def drawn(seed, scale=3.0):
    n, c, draw = shapes(seed)
    return softmax(scale * draw.normal(size=(n, c)))


def snd_by_definition(p, temperature=0.05):
    """One pair of examples after the other."""
    cosine = [[sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
               for y in p] for x in p]
    entropies = []
    for i, row in enumerate(cosine):
        odds = [math.exp(value / temperature) for j, value in enumerate(row) if j != i]
        shares = [value / sum(odds) for value in odds]
        entropies.append(-sum(share * math.log(share) for share in shares if share > 0))
    return sum(entropies) / len(entropies)


@pytest.mark.parametrize("seed", SEEDS)
def test_soft_neighborhood_density_is_its_definition_in_blocks_of_any_size(seed):
    p = drawn(seed)
    expected = snd_by_definition(p.tolist())
    for block in (1, 7, 512):
        np.testing.assert_allclose(validators.soft_neighborhood_density(p, block=block), expected, rtol=1e-9,
                                   atol=1e-12)


def test_soft_neighborhood_density_by_hand_and_not_its_wrong_variants():
    """Two equal answers and one at a right angle: rows (0, -inf), (0, -inf) and (0, 0) after the diagonal is out."""
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    sure = math.exp(-1 / 0.05)  # the share of the stranger among the neighbours of the first two
    pair = -(math.log(1 / (1 + sure)) / (1 + sure) + sure / (1 + sure) * math.log(sure / (1 + sure)))
    right = validators.soft_neighborhood_density(p)
    assert right == pytest.approx((2 * pair + math.log(2)) / 3, rel=1e-12)
    assert abs(snd_over_the_whole_matrix(p) - right) > 0.02 and abs(snd_with_the_diagonal(p) - right) > 0.1


def similarities(p):
    rows = p / np.linalg.norm(p, axis=1, keepdims=True)
    return np.exp(rows @ rows.T / 0.05)


def entropies(shares):
    return -np.sum(np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0), axis=-1)


def snd_over_the_whole_matrix(p):
    return float(entropies(similarities(p) / similarities(p).sum()).mean())


def snd_with_the_diagonal(p):
    return float(entropies(similarities(p) / similarities(p).sum(1, keepdims=True)).mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_soft_neighborhood_density_is_none_of_its_wrong_variants(seed):
    p = softmax(np.random.default_rng(seed).normal(size=(20 + seed, 5)))
    right = validators.soft_neighborhood_density(p)
    assert abs(snd_over_the_whole_matrix(p) - right) > 0.5 and abs(snd_with_the_diagonal(p) - right) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_entropy_information_and_nuclear_norm_are_their_definitions(seed):
    p = drawn(seed)
    entropies = [-sum(v * math.log(v) for v in row if v > 0) for row in p.tolist()]
    mean = [sum(column) / len(p) for column in zip(*p.tolist(), strict=True)]
    assert validators.mean_entropy(p) == pytest.approx(sum(entropies) / len(p), rel=1e-10)
    assert validators.information(p) == pytest.approx(
        -sum(v * math.log(v) for v in mean) - sum(entropies) / len(p), rel=1e-8, abs=1e-12)
    values = np.linalg.eigvalsh(p.T @ p if len(p) > p.shape[1] else p @ p.T)
    assert validators.batch_nuclear_norm(p) == pytest.approx(np.sqrt(np.maximum(values, 0)).sum() / len(p), rel=1e-6)
    assert validators.batch_nuclear_norm(p) <= math.sqrt(min(p.shape) / len(p)) + 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_and_risks_of_the_source_are_their_definitions(seed):
    n, c, draw = shapes(seed)
    logits, labels, weights = draw.normal(size=(n, c)), draw.integers(c, size=n), draw.gamma(1.0, size=n)
    right = sum(int(np.argmax(row)) == label for row, label in zip(logits, labels, strict=True)) / n
    losses = [-math.log(row[label]) for row, label in zip(softmax(logits).tolist(), labels, strict=True)]
    assert validators.source_accuracy(logits, labels) == pytest.approx(right)
    np.testing.assert_allclose(validators.cross_entropies(logits, labels), losses, rtol=1e-10)
    weighted = [w * loss for w, loss in zip(weights, losses, strict=True)]
    mean, level = sum(weighted) / n, sum(weights) / n
    covariance = sum((a - mean) * (w - level) for a, w in zip(weighted, weights, strict=True)) / (n - 1)
    eta = -covariance / (sum((w - level) ** 2 for w in weights) / (n - 1))
    assert validators.importance_weighted_risk(losses, weights) == pytest.approx(mean, rel=1e-10)
    assert validators.control_variate_risk(losses, weights) == pytest.approx(mean + eta * level - eta, rel=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_weights_that_tell_nothing_the_risk_is_the_mean_loss(seed):
    n, _, draw = shapes(seed)
    losses = draw.exponential(size=n)
    for level in (1.0, 0.5, 1e-30):
        assert validators.control_variate_risk(losses, np.full(n, level)) == pytest.approx(losses.mean(), rel=1e-12)
    assert validators.importance_weighted_risk(losses, np.ones(n)) == pytest.approx(losses.mean(), rel=1e-12)


def shifted(draw, n=300, mean=1.0):
    """Losses and true density ratios of N(0, 1) -> N(mean, 1), with the loss (x - 1)^2: its target risk is
    1 + (mean - 1)^2."""
    x = draw.normal(size=n)
    return (x - 1) ** 2, np.exp(mean * x - mean ** 2 / 2), 1 + (mean - 1) ** 2


def test_the_control_variate_finds_the_true_risk_with_less_variance():
    draw = np.random.default_rng(0)
    pairs = [shifted(draw) for _ in range(400)]
    plain = np.array([validators.importance_weighted_risk(*pair[:2]) for pair in pairs])
    ours = np.array([validators.control_variate_risk(*pair[:2]) for pair in pairs])
    naive = np.mean([pair[0].mean() for pair in pairs])
    assert naive == pytest.approx(2.0, abs=0.05)  # the risk on the source
    assert plain.mean() == pytest.approx(1.0, abs=0.05) and ours.mean() == pytest.approx(1.0, abs=0.05)
    assert ours.var() < 0.8 * plain.var()


def test_the_estimated_density_ratio_is_near_the_true_one_and_so_is_the_risk():
    draw = np.random.default_rng(1)
    x, target = draw.normal(size=(1500, 1)), draw.normal(1.0, 1.0, size=(2500, 1))
    found = classify_domains(x, target)
    truth = x[:, 0] - 0.5
    assert np.corrcoef(found.source, truth)[0, 1] > 0.999
    assert np.abs(found.source - truth).max() < 0.5
    assert found.weights().mean() == pytest.approx(1.0, abs=0.15)
    losses = (x[:, 0] - 1) ** 2
    assert validators.control_variate_risk(losses, found.weights()) == pytest.approx(1.0, abs=0.25)


def test_weights_are_bounded_and_never_infinite():
    far = DomainClassifier(np.array([900.0, -900.0, 0.0, 1.0]), np.zeros(2))
    np.testing.assert_allclose(far.weights(), [2.0, 0.0, 1.0, 2.0])  # the bound is sqrt(4)
    np.testing.assert_allclose(far.weights(bound=10), [10.0, 0.0, 1.0, math.e])
    draw = np.random.default_rng(2)
    apart = classify_domains(draw.normal(size=(100, 3)), draw.normal(size=(80, 3)) + 50)
    assert np.isfinite(apart.weights()).all() and apart.weights().max() <= 10


@pytest.mark.parametrize("sizes", [(400, 300), (300, 400), (50, 800)])
def test_the_distance_of_domains_is_0_for_equal_and_2_for_separable_ones(sizes):
    draw = np.random.default_rng(0)
    x, same = (draw.normal(size=(n, 4)) for n in sizes)
    assert a_distance(x, same) < 0.3
    assert a_distance(x, same + 20) == pytest.approx(2.0)
    assert a_distance(x, same) == a_distance(x, same)
    assert a_distance(np.ones((10, 3)), np.ones((20, 3))) == 0.0  # features that do not vary tell nothing
    middle = a_distance(x, same + [0.7, 0, 0, 0])
    # The best linear classifier of N(0, 1) and N(0.7, 1) errs in Phi(-0.35) = 0.363 of the cases: a distance of 0.547.
    assert middle == pytest.approx(0.547, abs=0.25)


def test_no_example_is_answered_by_the_fold_that_was_fitted_to_it():
    """With as many features as examples a classifier of pure noise knows all that it was fitted to."""
    draw = np.random.default_rng(3)
    assert a_distance(draw.normal(size=(60, 200)), draw.normal(size=(60, 200))) < 0.6


def clusters(draw, classes=4, n=200, dimensions=8, shift=0.0):
    """Features in clusters, labels, and the same of a shifted target."""
    means = 4 * draw.normal(size=(classes, dimensions))
    labels = [draw.integers(classes, size=n) for _ in range(2)]
    features = [means[y] + draw.normal(size=(n, dimensions)) for y in labels]
    return features[0], labels[0], features[1] + shift, labels[1]


@pytest.mark.parametrize("seed", range(20))
def test_reverse_validation_is_scikit_learns_regression_there_and_back(seed):
    draw = np.random.default_rng(seed)
    x, y, target, truth = clusters(draw, classes=int(draw.integers(2, 6)), n=int(draw.integers(40, 120)),
                                   dimensions=int(draw.integers(2, 9)), shift=0.3)
    answers = np.where(draw.random(len(truth)) < 0.3, draw.integers(truth.max() + 1, size=len(truth)), truth)
    classes = int(max(y.max(), answers.max())) + 1
    mean, scale = target.mean(0), target.std(0)
    model = LogisticRegression(C=1 / (len(target) * validators.REVERSE_PENALTY), max_iter=5000, tol=1e-8)
    model.fit((target - mean) / scale, answers)
    expected = np.mean(model.predict((x - mean) / scale) == y)
    found = validators.reverse_accuracy(x, y, target, answers, classes)
    assert found == pytest.approx(expected, abs=1.5 / len(x))  # an example on the border may fall to either side


def test_reverse_validation_finds_a_flipped_labelling():
    draw = np.random.default_rng(0)
    x, y, target, truth = clusters(draw, classes=3, shift=0.2)
    assert validators.reverse_accuracy(x, y, target, truth, 3) > 0.95
    assert validators.reverse_accuracy(x, y, target, (truth + 1) % 3, 3) < 0.05
    one = np.full(len(truth), 1)
    assert validators.reverse_accuracy(x, y, target, one, 3) == pytest.approx(np.mean(y == 1))


def evidence(seed=0, n=90, m=110, c=4, d=6):
    draw = np.random.default_rng(seed)
    return Evidence(draw.normal(size=(m, d)), draw.normal(size=(m, c)), draw.normal(size=(n, d)),
                    draw.normal(size=(n, c)), draw.integers(c, size=n))


def test_the_registry_gives_all_scores_larger_is_better_and_looks_at_no_target_label():
    given = evidence()
    found = validators.validate(given, tuple(VALIDATORS))
    assert set(found) == set(VALIDATORS) and all(math.isfinite(value) for value in found.values())
    p = given.probabilities
    assert found["entropy"] == -validators.mean_entropy(p) and found["information"] == validators.information(p)
    weights = given.domains.weights()
    assert found["iwcv"] == -validators.importance_weighted_risk(given.losses, weights)
    assert -given.losses.max() <= found["dev"] <= -given.losses.min()
    assert found["a_distance"] == -given.domains.distance
    assert not any("target_label" in field.name for field in dataclasses.fields(Evidence))
    fields = {field.name for field in dataclasses.fields(Evidence)}
    assert all(set(validator.needs) <= fields for validator in VALIDATORS.values())


def test_a_validator_needs_no_more_than_it_says():
    full = evidence()
    for name, validator in VALIDATORS.items():
        given = Evidence(**{need: getattr(full, need) for need in validator.needs})
        assert validators.validate(given, [name])[name] == validators.validate(full, [name])[name]
        for need in validator.needs:
            without = dataclasses.replace(given, **{need: None})
            with pytest.raises(UserError, match=f"{name!r} needs {need.replace('_', ' ')}"):
                validators.validate(without, [name])
            with pytest.raises(UserError, match="there are none"):
                validators.validate(dataclasses.replace(given, **{need: getattr(full, need)[:0]}), [name])


def test_a_better_model_scores_better():
    """Answers of a model that knows the classes, and of one that does not, on clusters of both domains."""
    draw = np.random.default_rng(5)
    x, y, target, truth = clusters(draw, classes=5, shift=0.3)
    good = Evidence(target, 6 * np.eye(5)[truth], x, 6 * np.eye(5)[y], y)
    poor = Evidence(target, draw.normal(size=(len(truth), 5)), x, draw.normal(size=(len(y), 5)), y)
    better, worse = (validators.validate(given, tuple(VALIDATORS)) for given in (good, poor))
    for name in set(VALIDATORS) - {"snd", "a_distance"}:  # the features are the same
        assert better[name] > worse[name], name


@pytest.mark.parametrize("name", VALIDATORS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(name, value):
    full = evidence()
    for need in VALIDATORS[name].needs:
        if need != "source_labels":
            broken = getattr(full, need).copy()
            broken[3, 1] = value
            if need == "target_logits" and name == "reverse":
                continue  # it reads the largest alone
            with pytest.raises(UserError, match="not finite"):
                validators.validate(dataclasses.replace(full, **{need: broken}), [name])


@pytest.mark.parametrize("name", VALIDATORS)
def test_equal_answers_everywhere_and_a_single_class_have_a_value(name):
    full = evidence()
    same = dataclasses.replace(full, target_logits=np.zeros_like(full.target_logits),
                               source_logits=np.zeros_like(full.source_logits),
                               target_features=np.ones_like(full.target_features),
                               source_features=np.ones_like(full.source_features))
    one = dataclasses.replace(full, source_labels=np.zeros_like(full.source_labels))
    for given in (same, one):
        assert math.isfinite(validators.validate(given, [name])[name])


def test_what_equal_answers_everywhere_give():
    full = evidence()
    same = dataclasses.replace(full, target_logits=np.zeros_like(full.target_logits),
                               target_features=np.ones_like(full.target_features),
                               source_features=np.ones_like(full.source_features))
    found = validators.validate(same, tuple(VALIDATORS))
    assert found["snd"] == pytest.approx(math.log(len(full.target_logits) - 1))  # its largest value: it can be fooled
    assert found["information"] == pytest.approx(0, abs=1e-12) and found["entropy"] == pytest.approx(-math.log(4))
    assert found["a_distance"] == 0 and found["dev"] == found["iwcv"] == pytest.approx(-full.losses.mean())
    assert found["reverse"] == pytest.approx(np.mean(full.source_labels == 0))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: validators.soft_neighborhood_density(np.ones((1, 1))), "2 examples or more"),
    (lambda: validators.mean_entropy(np.ones((3, 2))), "sum to 1"),
    (lambda: validators.information(np.zeros((0, 3))), "one example or more"),
    (lambda: validators.source_accuracy(np.zeros((3, 2)), np.array([0, 1, 2])), "below 2"),
    (lambda: validators.source_accuracy(np.zeros((3, 2)), np.array([0, 1])), "one for each of 3"),
    (lambda: validators.control_variate_risk(np.ones(3), np.ones(4)), "the same examples"),
    (lambda: validators.control_variate_risk(np.ones(3), -np.ones(3)), "not negative"),
    (lambda: validators.importance_weighted_risk(np.zeros(0), np.zeros(0)), "the same examples"),
    (lambda: classify_domains(np.ones((1, 2)), np.ones((3, 2))), "two examples or more"),
    (lambda: classify_domains(np.ones((3, 2)), np.ones((3, 4))), "the same tap"),
    (lambda: validators.usable(("sndd",), True), "did you mean 'snd'"),
    (lambda: validators.usable(("dev",), False), "'dev' needs labelled examples of the source")])
def test_bad_input_is_told_in_a_sentence(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_without_a_source_what_needs_none_is_used():
    assert validators.usable((), False) == ("snd", "entropy", "information", "bnm")
    assert validators.usable((), True) == tuple(VALIDATORS)
    for first, second in itertools.pairwise(validators.usable(("dev", "snd"), True)):
        assert (first, second) == ("dev", "snd")
