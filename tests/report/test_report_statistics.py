"""Intervals against scipy's own; honest treatment of one seed and of divergence."""

import numpy as np
import pytest
import scipy.stats

from transfer_jax.experiment.report import statistics


@pytest.mark.parametrize("seeds", [2, 3, 5, 30])
def test_interval_is_the_t_interval_of_scipy(seeds):
    values = np.random.default_rng(seeds).normal(0.5, 0.1, seeds)
    found = statistics.summarize(values)
    low, high = scipy.stats.t.interval(0.95, seeds - 1, values.mean(), scipy.stats.sem(values))
    assert (found.low, found.high, found.count) == (pytest.approx(low), pytest.approx(high), seeds)


def test_paired_interval_agrees_with_the_paired_t_test():
    random = np.random.default_rng(1)
    reference = random.normal(0.5, 0.2, 8)
    values = reference + random.normal(0.05, 0.02, 8)
    found = statistics.paired_difference(values, reference)
    expected = scipy.stats.ttest_rel(values, reference).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.half < statistics.summarize(values).half / 3
    assert statistics.paired_difference(values, reference[:-1]) is None


def test_the_interval_covers_the_truth_in_95_of_100_experiments():
    random = np.random.default_rng(0)
    trials = [statistics.summarize(random.normal(3.0, 2.0, 5)) for _ in range(4000)]
    assert np.mean([t.low <= 3.0 <= t.high for t in trials]) == pytest.approx(0.95, abs=0.012)


def test_one_seed_shows_no_interval():
    found = statistics.summarize([0.25])
    assert found.half is None and statistics.text(found) == "0.250"
    mean, half = statistics.band(np.array([[0.1, 0.2]]))
    assert mean.tolist() == [0.1, 0.2] and half.tolist() == [0, 0]


def test_a_diverged_seed_is_not_averaged_away():
    found = statistics.summarize([0.5, np.nan, np.inf])
    assert np.isnan(found.mean) and statistics.text(found) == "diverged (2/3)"


def test_band_is_the_interval_column_by_column():
    values = np.random.default_rng(2).normal(size=(4, 6))
    mean, half = statistics.band(values)
    single = [statistics.summarize(column) for column in values.T]
    np.testing.assert_allclose(mean, [s.mean for s in single])
    np.testing.assert_allclose(half, [s.half for s in single])


def test_digits_follow_the_size_of_the_numbers():
    assert [statistics.decimals([v]) for v in (0.93, 4.2, 93.1, 5000.0, 0.004, 0.0)] == [3, 2, 1, 0, 5, 3]
    assert statistics.text(statistics.Summary(0.0312, 0.004, 3), 3, signed=True) == "+0.031 ± 0.004"


def test_direction_of_metrics():
    assert statistics.lower_is_better("calibration_error") and statistics.lower_is_better("loss")
    assert not statistics.lower_is_better("accuracy") and not statistics.lower_is_better("mean_iou")


def test_the_standard_error_is_that_of_the_mean():
    values = [0.2, 0.5, 0.9]
    assert statistics.summarize(values).error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert statistics.summarize(values[:1]).error is None
