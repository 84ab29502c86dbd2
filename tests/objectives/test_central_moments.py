"""The central moment discrepancy."""

import functools

import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import central_moments, deep_coral


def draw(rng):
    length = rng.integers(1, 5)
    return {"source_features": rng.uniform(size=(rng.integers(2, 8), length)),
            "target_features": rng.uniform(0.1, 0.8, (rng.integers(2, 8), length))}


def moment(rows, entry, order):
    values = [row[entry] for row in rows]
    mean = sum(values) / len(values)
    return mean if order == 1 else sum((value - mean)**order for value in values) / len(values)


def written_out(x, orders, span):
    total = 0.0
    for order in range(1, orders + 1):
        differences = [moment(x["source_features"], entry, order) - moment(x["target_features"], entry, order)
                       for entry in range(x["source_features"].shape[1])]
        total += np.sqrt(sum(difference**2 for difference in differences)) / span**order
    return total


def test_it_is_the_sum_of_the_distances_of_the_moments():
    for seed in range(20):
        options = ({"orders": 5, "span": 1.0}, {"orders": 3, "span": 2.0}, {"orders": 1, "span": 1.0})[seed % 3]
        agrees(functools.partial(central_moments, **options),
               lambda x, _, options=options: written_out(x, **options), draw(np.random.default_rng(seed)), seed)


def test_equal_batches_have_distance_zero_and_no_slope():
    x = draw(np.random.default_rng(0))["source_features"]
    assert finite(central_moments, {"source_features": x, "target_features": x}) == 0
    assert finite(central_moments, {"source_features": np.ones((2, 3)), "target_features": np.ones((5, 3))}) == 0


def test_it_sees_skew_where_covariances_agree():
    x = np.random.default_rng(1).beta(2, 5, size=(200, 1))
    mirrored = 2 * x.mean() - x
    assert deep_coral(x, mirrored) < 1e-8
    assert central_moments(x, mirrored, orders=2) < 1e-5 < 1e-4 < central_moments(x, mirrored, orders=3)


def test_misfits_are_told():
    for options in ({"orders": 0}, {"span": 0.0}):
        with pytest.raises(UserError, match="orders >= 1"):
            central_moments(np.ones((2, 2)), np.ones((2, 2)), **options)
    with pytest.raises(UserError, match="at least 2 examples"):
        central_moments(np.ones((1, 2)), np.ones((2, 2)))
